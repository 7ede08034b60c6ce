"""Task mining: real functions, small mutations, generated inputs."""
