"""Kernels for GPUs, and how they are lowered and launched: shared by all targets with one."""
