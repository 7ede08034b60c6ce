"""The learner: from packed tokens to a gradient of the adapter."""
