"""Environments: one folder per application."""
