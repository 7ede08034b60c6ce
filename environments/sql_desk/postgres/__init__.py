"""The SQL desk on PostgreSQL: the server, a database and role per episode, and limits on statements."""
