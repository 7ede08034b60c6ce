"""The viewer: a local web page to read the episodes of a run."""
