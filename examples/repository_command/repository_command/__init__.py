"""A repository with a command as an application: a stock room."""

from repository_command.env import StockRoom

__all__ = ["StockRoom"]
