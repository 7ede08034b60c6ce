"""Agents: whatever answers observations."""
