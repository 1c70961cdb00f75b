"""A load generator for OpenAI-compatible servers, with vLLM's definitions: what `cupola bench-serve` runs."""
