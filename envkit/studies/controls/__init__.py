"""Ways of changing a model on one environment: what each is worth, and what it costs."""
