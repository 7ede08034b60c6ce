"""The search for hidden values in what an agent can read."""
