"""The group `envkit study`: questions about LoRA and RL on small models, and tools that answer them."""
