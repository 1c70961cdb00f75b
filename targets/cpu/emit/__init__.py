"""Building blocks of kernels: vectors, loops, dot products, AMX tiles, threads."""
