"""The audit: checks that an environment must pass before anyone trains on it."""
