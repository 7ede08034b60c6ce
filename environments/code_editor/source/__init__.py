"""Pure functions on source text: edits, the definitions in a file, what new ones need, docstrings."""
