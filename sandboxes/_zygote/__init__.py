"""The zygote: a warm Python process in bubblewrap that forks commands."""
