"""Studies: whole experiments, from tasks to report."""
