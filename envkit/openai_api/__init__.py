"""Forms of OpenAI's API: bodies of requests, messages for chat templates, replies, and texts with tool calls."""
