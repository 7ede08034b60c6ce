"""Calls for a function: read from its docstring or type hints, perturbed, or generated from examples."""
