"""Held-out evaluation with honest statistics."""
