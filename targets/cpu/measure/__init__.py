"""Kernel cost: the ledger of kernels' machine code, and probes of the machine."""
