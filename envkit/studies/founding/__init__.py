"""Studies of claims about LoRA and RL on small models: what is trained for them, and what the results say."""
