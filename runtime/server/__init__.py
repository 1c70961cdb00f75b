"""The HTTP server: OpenAI's API in one process, the engine in another."""
