"""Codebooks by name: the value that each code of a weight stands for, before it is scaled, where codes are no numbers.

e4m3   8-bit floats of 4 bits of exponent and 3 of mantissa: E4M3 of OCP's "8-bit Floating Point Specification", revision 1.0, which
       torch calls float8_e4m3fn. It has no infinities; the codes 0x7f and 0xff are NaN, which no weight may hold
e2m1   4-bit floats of 2 and 1: E2M1 of OCP's "Microscaling Formats (MX) Specification", version 1.0, of which MXFP4 and NVFP4 consist
nf4    NormalFloat of QLoRA (arXiv:2305.14314, appendix E), in the float32 numbers of bitsandbytes
iq4nl  the values of llama.cpp's IQ4_NL and IQ4_XS (`kvalues_iq4nl`)
iq3xxs the numbers that the lattice of llama.cpp's IQ3_XXS consists of (`iq3xxs_grid`), with their signs, by 4
iq3s   those of IQ3_S (`iq3s_grid`)
iq2    those of IQ2_XXS, IQ2_XS and IQ2_S (`iq2xxs_grid` and so on), by 8; the last two codes stand for nothing
iq1    those of IQ1_S and IQ1_M (`iq1s_grid`), an eighth more or less, likewise

Of a lattice only these numbers are kept, not which of them stand beside one another: that costs a bit a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def _floats(exponent_bits: int, mantissa_bits: int, num_nans: int) -> tuple[float, ...]:
    """The values of floats without infinities, by their bits; of each sign the last `num_nans` are NaN."""
    steps, bias = 1 << mantissa_bits, (1 << exponent_bits - 1) - 1
    magnitudes = []
    for code in range(1 << exponent_bits + mantissa_bits):
        exponent, mantissa = divmod(code, steps)
        whole = mantissa + (steps if exponent else 0)  # subnormal numbers have no hidden bit, and the exponent of the least normal ones
        magnitudes.append(math.ldexp(whole, max(exponent, 1) - bias - mantissa_bits))
    magnitudes[len(magnitudes) - num_nans :] = [math.nan] * num_nans
    return (*magnitudes, *(-magnitude for magnitude in magnitudes))


_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _signed(*magnitudes: float) -> tuple[float, ...]:
    """The numbers and their negatives in order, with zeros up to 8 or 16."""
    numbers = (*(-magnitude for magnitude in reversed(magnitudes)), *magnitudes)
    return numbers + (0.0,) * (-len(numbers) % 8)


TABLES: Mapping[str, tuple[float, ...]] = {
    "e4m3": _floats(4, 3, num_nans=1),
    "e2m1": _floats(2, 1, num_nans=0),
    "nf4": _NF4,
    "iq4nl": tuple(map(float, _IQ4_NL)),
    "iq3xxs": _signed(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.5),
    "iq3s": _signed(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0),
    "iq2": _signed(1.0, 3.125, 5.375),
    "iq1": _signed(0.125, 0.875, 1.125),
}
E4M3_MAX = 448.0
