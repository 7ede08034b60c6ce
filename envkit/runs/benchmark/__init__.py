"""A benchmark run: its agents, tasks and evaluation, set up once and resumable."""
