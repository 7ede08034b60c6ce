"""The code editor: repair real Python functions."""
