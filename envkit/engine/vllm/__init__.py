"""vLLM behind the engine protocol. Imported only where it is asked for."""
