"""A weight format: what the codes and scales of a quantized weight stand for. Sources, schemes, operations and kernels read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias, get_args

from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.tables import TABLES

ZeroPoint: TypeAlias = Literal["none", "mins", "codes"]
SCALE_DTYPES = ("float16", "bfloat16", "float32")
_NAME = re.compile(
    r"w(?P<bits>\d+)g(?P<group>\d+)(?P<zero>[mz]?)(?:-(?P<table>(?!b?f\d|s\d+x)[a-z]\w*))?"
    r"(?:-s(?P<scale_bits>\d+)x(?P<super>\d+))?(?:-(?P<scales>b?f\d+))?"
)
_ZERO_POINTS: Mapping[str, ZeroPoint] = {"": "none", "m": "mins", "z": "codes"}
_SHORT_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
_SCALE_BITS = (4, 6, 8)


@dataclass(frozen=True)
class WeightFormat:
    """How a weight [N, K] is quantized: in groups along K, each with a scale.

    A value is scale · (code − zero), or scale · code + min, or scale · table[code]. Where there are super-blocks, as in llama.cpp's
    K-quants, a scale is super scale · scale code, and a min super min · min code: products of float32, which hold them exactly.

    Attributes:
        bits: of a code.
        group_size: values of a row that share a scale. Rows are padded with zeros to whole groups, or super-blocks.
        scale_dtype: the type of scales and of mins; of super scales and super mins where there are those.
        zero_point: "mins": each group has a min too; "codes": each has a zero, of the codes' type; "none": codes lie around `zero`.
        table: a key of TABLES, or "": codes are numbers.
        super_size: values of a row that share a super scale; 0: scales stand for themselves.
        scale_bits: of a scale code, and of a min code; with a sign if there are no mins. 0: scales stand for themselves.

    Raises:
        UnsupportedError: these do not make a format.
    """

    bits: int
    group_size: int
    scale_dtype: str = "float16"
    zero_point: ZeroPoint = "none"
    table: str = ""
    super_size: int = 0
    scale_bits: int = 0

    def __post_init__(self) -> None:
        _check("bits", self.bits, 2 <= self.bits <= 8, "2 to 8")
        _check("group size", self.group_size, self.group_size > 0, "1 or more")
        _check("scale type", self.scale_dtype, self.scale_dtype in SCALE_DTYPES, ", ".join(SCALE_DTYPES))
        _check("zero point", self.zero_point, self.zero_point in get_args(ZeroPoint), ", ".join(get_args(ZeroPoint)))
        tables = [name for name, values in TABLES.items() if len(values) == 1 << self.bits]
        _check("table", self.table, not self.table or (self.table in tables and self.zero_point == "none"), ", ".join(tables) or "none")
        whole_groups = self.super_size >= 0 and self.super_size % self.group_size == 0
        _check("super-block size", self.super_size, whole_groups, f"multiples of {self.group_size}")
        _check("zeros in super-blocks", self.has_zeros, not (self.super_size and self.has_zeros), "none")
        bits = _SCALE_BITS if self.super_size else (0,)
        _check("scale code of bits", self.scale_bits, self.scale_bits in bits, ", ".join(map(str, bits)))

    @staticmethod
    @cache
    def parse(name: str) -> WeightFormat:
        """The format of that name.

        Raises:
            UnsupportedError: it is not the name of one.
        """
        found = _NAME.fullmatch(name)
        scales = _SHORT_DTYPES.get(found["scales"] or "f16") if found else None
        if found is None or scales is None:
            raise UnsupportedError(f"{name!r} is not a weight format", field="weight format", fix="such as w4g32 or w4g128m")
        levels = (int(found["super"] or 0), int(found["scale_bits"] or 0))
        zero_point = _ZERO_POINTS[found["zero"]]
        return WeightFormat(int(found["bits"]), int(found["group"]), scales, zero_point, found["table"] or "", *levels)

    @property
    def name(self) -> str:
        """The text that operations carry: w4g32 is 4 bits in groups of 32; an m after it says that there are mins, a z zeros;
        w6g16-s8x256 has scale codes of 8 bits in super-blocks of 256."""
        scales = next(short for short, dtype in _SHORT_DTYPES.items() if dtype == self.scale_dtype)
        levels = f"s{self.scale_bits}x{self.super_size}" if self.super_size else ""
        extras = [part for part in (self.table, levels, "" if scales == "f16" else scales) if part]
        zero = next(letter for letter, kind in _ZERO_POINTS.items() if kind == self.zero_point)
        return "-".join([f"w{self.bits}g{self.group_size}{zero}", *extras])

    @property
    def has_mins(self) -> bool:
        """True if each group has a min."""
        return self.zero_point == "mins"

    @property
    def has_zeros(self) -> bool:
        """True if each group has a zero, which stands in the place of a min."""
        return self.zero_point == "codes"

    @property
    def code_dtype(self) -> str:
        """The type of codes, one a byte: 8 bits around zero have a sign."""
        return "int8" if self.bits == 8 and not self.has_mins and not self.table else "uint8"

    @property
    def zero(self) -> int:
        """The code that stands for 0, where neither mins, zeros nor a table say so."""
        return 0 if self.zero_point != "none" or self.table or self.code_dtype == "int8" else 1 << self.bits - 1

    @property
    def block_size(self) -> int:
        """Values of a row that stand for themselves: those of a super-block, or of a group."""
        return self.super_size or self.group_size

    @property
    def factors(self) -> tuple[tuple[str, int, str], ...]:
        """The tensors beside codes, [N, values of a row / size] each: name, size and type."""
        names = ("scales", "mins")[: 1 + self.has_mins]
        if not self.super_size:
            zeros = (("mins", self.group_size, self.code_dtype),) if self.has_zeros else ()
            return (*((name, self.group_size, self.scale_dtype) for name in names), *zeros)
        codes = tuple((name, self.group_size, "uint8" if self.has_mins else "int8") for name in names)
        return codes + tuple((f"super_{name}", self.super_size, self.scale_dtype) for name in names)

    @property
    def bits_per_value(self) -> float:
        """Bits of a value, with its share of the scale and the min."""
        size = 32 if self.scale_dtype == "float32" else 16
        codes = (self.scale_bits * (1 + self.has_mins) + 8 * self.has_zeros) / self.group_size
        return self.bits + codes + size * (1 + self.has_mins) / self.block_size

    @property
    def flat(self) -> WeightFormat:
        """The format of the same codes whose scales and mins stand for themselves."""
        return replace(self, super_size=0, scale_bits=0)

    def fits(self, other: WeightFormat) -> bool:
        """True if `other` can hold the values of this format exactly, as long as mins do not overflow its type."""
        kinds = [(form.group_size, form.scale_dtype, form.table, form.super_size) for form in (self, other)]
        if kinds[0] != kinds[1] or self.super_size or self.table or self.zero_point != "none":
            return self == other
        with_zeros = other.bits == self.bits and (other.has_zeros or (other.has_mins and self.code_dtype == "uint8"))
        return self == other or with_zeros or (self.code_dtype == "uint8" and other.code_dtype == "int8" and not other.has_zeros)

    def padded(self, width: int) -> int:
        """Values of a row of `width`, padded to whole groups or super-blocks."""
        return -(-width // self.block_size) * self.block_size

    def num_groups(self, width: int) -> int:
        """Groups in a row of `width` values."""
        return self.padded(width) // self.group_size


def _check(field: str, value: object, is_right: bool, choices: str) -> None:
    if not is_right:
        raise UnsupportedError(f"a weight format has no {field} {value!r}", field="weight format", fix=f"choose from {choices}")
