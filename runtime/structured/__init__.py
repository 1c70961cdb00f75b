"""Structured output: grammars, JSON schemas and structural tags."""
