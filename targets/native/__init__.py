"""The native side of targets that run on a CPU: kernels with a plain C interface, linking, the threads that a library brings along."""
