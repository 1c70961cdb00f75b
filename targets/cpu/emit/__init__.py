"""What kernels are written with: vectors, loops, dot products, AMX tiles, threads."""
