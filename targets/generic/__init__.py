"""Parts for any target that TVM can compile for: every operation in plain loops, and the plainest layout of state."""
