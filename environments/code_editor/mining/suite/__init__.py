"""Repair tasks from a checkout that has a pytest suite; the suite grades them."""
