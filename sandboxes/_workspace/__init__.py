"""Workspaces: file systems of a fixed size in memory, and safe access to the files in them."""
