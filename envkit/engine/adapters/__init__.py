"""Adapters in an engine: their updates side by side, read on demand and evicted within a budget."""
