"""Studies of the claims that envkit was founded on: what is trained for them, and what the results say."""
