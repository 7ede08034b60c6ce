"""An MCP server as an application: notes about what people owe."""

from notes_mcp.env import Notes

__all__ = ["Notes"]
