"""Running language models: tokens in, tokens out."""
