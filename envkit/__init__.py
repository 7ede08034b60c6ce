"""RL environments around real applications, and the loop that trains small models on them."""
