"""Kernels for mixtures of experts: tokens sorted by expert, and the linear layers' tiles and formats for each expert's tokens."""
