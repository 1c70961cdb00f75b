"""What kernels cost: the ledger of their machine code, and probes of the machine."""
