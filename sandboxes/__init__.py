"""Sandbox backends: places to run hostile code."""
