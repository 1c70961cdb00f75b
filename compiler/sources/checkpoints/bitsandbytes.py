"""bitsandbytes: NF4 (arXiv:2305.14314) and FP4 in blocks of a weight's values, and LLM.int8() (arXiv:2208.07339) in rows.

4 bits: weight [N · K / 2, 1] of bytes, the high half first, whatever type they are stored as; weight.absmax, a scale a block, f32, or u8
where scales are quantized themselves: an entry of nested_quant_map · nested_absmax of blocks of them + an offset; weight.quant_map, what
codes stand for; weight.quant_state.bitsandbytes__nf4, JSON in bytes. 8 bits: weight i8 [N, K], SCB f32 [N]; a weight is code · SCB / 127.
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/functional.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import floats, group_size_of, integer_tensor, integers, nibbles, quantized, table_tensor
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.formats.tensor import QuantizedTensor

_STATES = {".weight.quant_state.bitsandbytes__nf4": "NF4", ".weight.quant_state.bitsandbytes__fp4": "FP4"}
_HALF = 128  # what stands for 0 where codes have a sign
_STATISTICS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True)
class _Reader:
    marks: tuple[str, ...] = (*_STATES, ".SCB")
    parts: tuple[str, ...] = (".weight", ".SCB", ".weight_format", *_STATES, *(f".weight{part}" for part in _STATISTICS))
    beside: Mapping[str, str] = field(default_factory=dict)
    result: str = ".weight"

    def read(self, parts: Parts) -> LazyTensor:
        return _int8(parts) if parts.get(".SCB") is not None else _four_bits(parts)


def _int8(parts: Parts) -> LazyTensor:
    weight = parts.need(".weight", ["I8"], [None, None])
    n, k = weight.shape
    scb = parts.need(".SCB", ["F32"], [n])
    layout = parts.get(".weight_format")
    if layout is not None and int(layout.load().reshape(-1)[0]) != 0:
        raise parts.damaged(".weight_format", "says that the rows are in a GPU's order, which cupola does not read")
    form = integers(8, group_size_of(k, 0), "float32", has_zeros=False)

    def blocks() -> QuantizedTensor:
        scales = (scb.load() * np.float32(1 / 127))[:, None]
        return integer_tensor(form, weight.load().view(np.uint8) + np.uint8(_HALF), scales, _HALF)

    return quantized(parts.name + ".weight", (n, k), "bitsandbytes int8", form, blocks)


def _four_bits(parts: Parts) -> LazyTensor:
    mark, kind = next((mark, kind) for mark, kind in _STATES.items() if parts.get(mark) is not None)
    state = _state(parts, mark)
    shape, size = state["shape"], state["blocksize"]
    n, k = shape
    weight, table = parts.need(".weight", ["U8", "I8", "F16", "BF16", "F32"]), parts.need(".weight.quant_map", ["F32"], [16])
    num_bytes = math.prod(weight.shape) * {"U8": 1, "I8": 1, "F32": 4}.get(weight.stored_as, 2)
    if num_bytes != (n * k + 1) // 2:
        raise parts.damaged(".weight", f"has {num_bytes} bytes, not half of {n} · {k}")
    absmax = parts.need(".weight.absmax", ["F32", "U8"], [-(-n * k // size)])
    name, label = parts.name + ".weight", f"bitsandbytes {kind}"

    def codes() -> Array:
        return nibbles(np.ascontiguousarray(weight.load()).view(np.uint8).reshape(-1), high_first=True)[: n * k].reshape(n, k)

    def scales(group: int) -> Array:
        """[N, K / group], of groups that no block's end cuts."""
        return np.repeat(_absmax(parts, absmax, state), size // group)[: n * k // group].reshape(n, -1)

    group = math.gcd(size, k)  # blocks go on from row to row
    if kind == "NF4" and np.array_equal(table.load(), np.array(TABLES["nf4"], np.float32)):
        form = WeightFormat(4, group, "float32", table="nf4")
        return quantized(name, (n, k), label, form, lambda: table_tensor(form, codes(), scales(group)))
    return floats(name, (n, k), label, lambda: table.load()[codes()] * np.repeat(scales(group), group, axis=1))


def _state(parts: Parts, mark: str) -> dict[str, Any]:
    raw = parts.need(mark, ["U8"], [None]).load().tobytes()
    try:
        state = json.loads(raw)
        shape, size = state["shape"], state["blocksize"]
        sound = len(shape) == 2 and all(isinstance(each, int) and each > 0 for each in (*shape, size)) and size & (size - 1) == 0
        if "nested_blocksize" in state:
            sound = sound and int(state["nested_blocksize"]) > 0 and math.isfinite(float(state["nested_offset"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise parts.damaged(mark, f"is no state of a quantized matrix: {raw[:60]!r}")
    return dict(state)


def _absmax(parts: Parts, absmax: LazyTensor, state: Mapping[str, Any]) -> Array:
    """The scale of every block."""
    if absmax.stored_as == "F32":
        return absmax.load()
    if "nested_blocksize" not in state:
        raise parts.damaged(".weight.absmax", "is quantized, and its quant_state says nothing of how")
    size = int(state["nested_blocksize"])
    units = parts.need(".weight.nested_absmax", ["F32"], [-(-absmax.shape[0] // size)]).load()
    entries = parts.need(".weight.nested_quant_map", ["F32"], [256]).load()
    scales: Array = entries[absmax.load()] * np.repeat(units, size)[: absmax.shape[0]] + np.float32(state["nested_offset"])
    return scales


def _open(settings: Settings) -> _Reader:
    return _Reader()


METHODS = (
    Method(
        "bitsandbytes",
        ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
        _open,
        ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
         "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
         "llm_int8_skip_modules", "llm_int8_threshold"),
    ),
)  # fmt: skip
