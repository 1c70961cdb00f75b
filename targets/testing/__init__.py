"""Cases and references that every target's kernels are tested on."""
