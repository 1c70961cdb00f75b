"""Kernels for CUDA and Metal on a CPU, thread by thread, so that they are executed where there is no GPU."""
