"""The SQL desk: answer questions about a database, or change it, with SQL statements."""

from __future__ import annotations

from envkit.environments.sql_desk.env import SqlDeskEnv, SqlDeskPostgresEnv

__all__ = ["SqlDeskEnv", "SqlDeskPostgresEnv"]
