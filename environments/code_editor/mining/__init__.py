"""Make repair tasks from installed packages: real functions, one mutation each, generated inputs."""
