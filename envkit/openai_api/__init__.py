"""Forms of OpenAI's API: requests, messages for chat templates, replies, and texts with tool calls."""
