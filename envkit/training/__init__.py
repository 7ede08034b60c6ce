"""Training small models on environments."""
