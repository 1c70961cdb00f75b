"""Attention over pages on CPUs."""
