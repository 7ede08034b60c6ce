"""Agents: a local model, an API, a script or recorded outputs behind one protocol."""
