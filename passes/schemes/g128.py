"""Groups of 128: 4.125 and 8.125 bits a weight with the scale."""

from __future__ import annotations

from cupola.passes.schemes.integers import integer_schemes

SCHEMES = integer_schemes(128)
