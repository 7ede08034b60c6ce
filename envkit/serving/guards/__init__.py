"""What a request must pass: host, size, key, rate and admission; and the errors it gets."""
