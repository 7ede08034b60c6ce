"""Attention of packed, shared and ragged rows, and their keys and values."""
