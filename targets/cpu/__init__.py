"""The CPU target: kernels in TIR over a small table of instruction sets."""
