"""The samplers of llama.cpp, beside those that `sampler.py` has in vLLM's order: a chain that a request switches on."""
