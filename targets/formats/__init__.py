"""How quantized weights are stored: `format.py` says what their numbers mean, `tensor.py` holds them."""
