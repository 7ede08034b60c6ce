"""Studies: a room for each question about LoRA and RL on small models, and the grid that they share.

Only commands and `envkit` itself import them.
"""
