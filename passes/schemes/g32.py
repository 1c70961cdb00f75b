"""Groups of 32, as in GGUF's blocks: 4.5 and 8.5 bits a weight with the scale, 5 with a min too."""

from __future__ import annotations

from cupola.passes.schemes.integers import integer_schemes

SCHEMES = integer_schemes(32)
