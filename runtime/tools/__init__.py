"""Tool calls of chats: from OpenAI's messages and tools to a prompt, and from the model's text to tool calls."""
