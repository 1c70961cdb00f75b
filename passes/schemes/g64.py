"""Groups of 64: 4.25 and 8.25 bits a weight with the scale."""

from __future__ import annotations

from cupola.passes.schemes.integers import integer_schemes

SCHEMES = integer_schemes(64)
