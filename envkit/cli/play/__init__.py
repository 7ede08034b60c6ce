"""Let a person play an episode in the terminal."""
