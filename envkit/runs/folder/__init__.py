"""The run folder: its records, code, machine, tasks, claim and report."""
