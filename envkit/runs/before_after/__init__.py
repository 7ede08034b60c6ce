"""A training run: planned for this machine, warm-started, trained, measured before and after."""
