"""Measurements: throughput, kernels, and the quality of answers."""
