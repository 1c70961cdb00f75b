"""Devices: memory, weights, compiled libraries, and the executor that runs a step."""
