"""Tokens found on GPUs: the likeliest, or drawn."""
