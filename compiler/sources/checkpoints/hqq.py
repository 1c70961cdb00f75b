"""HQQ (https://mobiusml.github.io/hqq_blog) as its `HQQLinear.state_dict` has it.

W_q holds codes of groups [N · K / size, size] (axis 1) or [size, N · K / size] (axis 0), packed along the first dimension: of 4 bits, u8
with the first half of the rows in high halves; of 2 and 1 alike; of 8, one a byte; of 3, ten an i32. A weight is scale · (code − zero),
with a zero that is no integer. https://github.com/mobiusml/hqq/blob/master/hqq/core/bitpack.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import floats, quantized
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

_META = (
    "nbits", "group_size", "shape", "axis", "packing", "view_as_float", "unpack_view_dtype", "compute_dtype", "offload_meta", "quant_scale",
    "quant_zero", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
)  # fmt: skip
_PACKED = {8: "U8", 4: "U8", 3: "I32", 2: "U8", 1: "U8"}


@dataclass(frozen=True)
class _Reader:
    weight_params: Mapping[str, object]  # for checkpoints whose tensors don't say
    marks: tuple[str, ...] = (".W_q",)
    parts: tuple[str, ...] = (".W_q", ".scale", ".zero", *(f".{name}" for name in _META))
    beside: Mapping[str, str] = field(default_factory=dict)
    result: str = ".weight"

    def number(self, parts: Parts, name: str, default: int | None = None) -> int:
        found, value = parts.get(f".{name}"), self.weight_params.get(name, default)
        if found is not None and found.shape in ((), (1,)):
            value = int(parts.need(f".{name}", ["U8", "I32", "I64"]).load().reshape(-1)[0])
        if not isinstance(value, int):
            raise parts.damaged(f".{name}", "is missing from the weights")
        return int(value)

    def read(self, parts: Parts) -> LazyTensor:
        bits, axis = self.number(parts, "nbits"), self.number(parts, "axis", 1)
        if bits not in _PACKED:
            raise parts.damaged(".nbits", f"is {bits}, which cupola does not read: it reads {', '.join(map(str, _PACKED))}")
        if axis not in (0, 1):
            raise parts.damaged(".axis", f"is {axis}, not 0 or 1")
        for name in ("view_as_float", "quant_scale", "quant_zero"):
            if self.number(parts, name, 0):
                raise parts.damaged(f".{name}", "is set, which cupola does not read")
        shape = parts.need(".shape", ["I32", "I64"], [2]).load().tolist()
        n, k = int(shape[0]), int(shape[1])
        scale = parts.need(".scale", FLOATS)
        count = int(np.prod(scale.shape))
        size = n * k // count if count else 0
        if not size or size * count != n * k or n <= 0 or k <= 0:
            raise parts.damaged(".scale", f"has {count} scales, which {n} · {k} values don't divide into")
        parts.need(".zero", FLOATS, scale.shape)
        rows, columns = (count, size) if axis == 1 else (size, count)
        num_words = -(-rows // (10 if bits == 3 else 8 // bits))
        parts.need(".W_q", [_PACKED[bits]], [num_words, columns])
        name, label = parts.name + self.result, f"HQQ of {bits} bits"
        if axis == 1 and k % size == 0:
            form = WeightFormat(4 if bits <= 4 else 8, size, "float32", "mins")
            return quantized(name, (n, k), label, form, lambda: _blocks(parts, form, bits, rows, (n, k)))
        return floats(name, (n, k), label, lambda: _values(parts, bits, rows, axis, (n, k)))


def _factors(parts: Parts) -> tuple[Array, Array]:
    scale, zero = (parts.tensors[part].load().astype(np.float32).reshape(-1) for part in (".scale", ".zero"))
    return scale, zero


def _codes(parts: Parts, bits: int, rows: int) -> Array:
    words = parts.tensors[".W_q"].load()
    if bits == 3:
        pieces = [words.view(np.uint32) >> np.uint32(shift) & np.uint32(7) for shift in range(27, -1, -3)]
    else:
        pieces = [words >> np.uint8(shift) & np.uint8((1 << bits) - 1) for shift in range(8 - bits, -1, -bits)]
    codes: Array = np.concatenate(pieces)[:rows].astype(np.uint8)
    return codes


def _blocks(parts: Parts, form: WeightFormat, bits: int, rows: int, shape: tuple[int, int]) -> QuantizedTensor:
    scale, zero = _factors(parts)
    codes = _codes(parts, bits, rows).reshape(shape)
    return QuantizedTensor(form, codes, scale.reshape(shape[0], -1), (-scale * zero).reshape(shape[0], -1))


def _values(parts: Parts, bits: int, rows: int, axis: int, shape: tuple[int, int]) -> Array:
    scale, zero = (factor[:, None] if axis == 1 else factor for factor in _factors(parts))
    values: Array = ((_codes(parts, bits, rows).astype(np.float32) - zero) * scale).reshape(shape)
    return values


def _open(settings: Settings) -> _Reader:
    params = settings.record("quant_config").get("weight_quant_params")
    return _Reader(params if isinstance(params, dict) else {})


METHODS = (Method("HQQ", ("hqq",), _open, ("skip_modules",)),)
