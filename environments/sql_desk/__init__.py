"""The SQL desk: answer questions about a database, and change it, with statements of SQL."""

from __future__ import annotations

from envkit.environments.sql_desk.env import SqlDeskEnv, SqlDeskPostgresEnv

__all__ = ["SqlDeskEnv", "SqlDeskPostgresEnv"]
