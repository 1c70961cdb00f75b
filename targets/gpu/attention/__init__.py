"""Paged attention of GPUs."""
