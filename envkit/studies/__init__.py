"""Complete experiments, from tasks to report: training runs and benchmarks."""
