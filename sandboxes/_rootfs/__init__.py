"""The root file system of a sandbox: a copy of Python with its standard library."""
