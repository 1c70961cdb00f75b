"""Linear layers of GPUs: by dot products, or by matrix units over weights in tiles."""
