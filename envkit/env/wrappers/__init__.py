"""Ready environments around what exists: Gymnasium, programs, MCP servers, web services, other machines."""
