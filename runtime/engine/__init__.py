"""The engine: requests, scheduling, K/V blocks and sampling."""
