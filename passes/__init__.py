"""Program rewrites: one IRModule -> IRModule pass a file."""
