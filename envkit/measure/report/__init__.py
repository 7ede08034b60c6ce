"""A run's report: its data, numbers, sentences, charts and pages."""
