"""Proposers of speculative decoding, a file each: they guess what a sequence says next. `proposer.py` is what they have in common."""
