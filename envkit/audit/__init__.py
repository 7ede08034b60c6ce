"""What an environment has to withstand before anyone trains on it."""
