"""Kernels that go row by row: norms, rotary embedding, embeddings, elementwise operations, maxima."""
