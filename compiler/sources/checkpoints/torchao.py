"""torchao's int4, int8 and float8 weights, flattened as its `flatten_tensor_state_dict` does it for safetensors.

The files' metadata say which tensor a weight is: for `….weight` there are `…._weight_qdata`, `…._weight_scale`, `…._weight_zero_point`.
Int4Tensor: qdata u8 or i8 [N, K / 2] of codes from -8 to 7, the low half of a byte first; scale and zero_point [groups, N]; a weight is
scale · code + zero_point (FBGEMM's int4_row_quantize_zp). Int8Tensor, IntxUnpackedToInt8Tensor: qdata i8 [N, K], scale and zero_point
[N, groups] or of the tensor; a weight is scale · (code − zero_point). Float8Tensor: qdata E4M3 [N, K] times scale.
https://github.com/pytorch/ao/tree/main/torchao/quantization/quantize_/workflows
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import group_size_of, integer_tensor, integers, nibbles, quantized
from cupola.compiler.sources.checkpoints.float_codes import Scales, e4m3_weight
from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

_QDATA, _SCALE, _ZERO = "._weight_qdata", "._weight_scale", "._weight_zero_point"
_ACTIVATION = "scales of activations"


@dataclass(frozen=True)
class _Reader:
    metadata: Mapping[str, str]
    marks: tuple[str, ...] = (_QDATA,)
    parts: tuple[str, ...] = (_QDATA, _SCALE, _ZERO, "._weight_act_pre_scale")
    result: str = ".weight"

    @property
    def beside(self) -> Mapping[str, str]:
        return {f"._weight_act_quant_{part}": _ACTIVATION for part in ("scale", "zero_point")}

    def read(self, parts: Parts) -> LazyTensor:
        kind, name = self.kind_of(parts), parts.name + self.result
        if parts.get("._weight_act_pre_scale") is not None:
            raise parts.damaged("._weight_act_pre_scale", "scales activations, which cupola does not read")
        if kind == "Float8Tensor":
            return e4m3_weight(parts, name, "torchao float8", _QDATA, Scales(_SCALE, self.block_of(parts)))
        if kind == "Int4Tensor":
            return _int4(parts, name)
        if kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
            return _int8(parts, name)
        raise UnsupportedError(
            f"is a {kind:.60}, which cupola does not read", file=parts.file, field=name,
            fix="quantize it by Int4WeightOnlyConfig, Int8WeightOnlyConfig or Float8WeightOnlyConfig in torchao's plain packing format",
        )  # fmt: skip

    def record_of(self, parts: Parts) -> dict[str, object]:
        try:
            record = json.loads(self.metadata[parts.name + self.result])
            return record if isinstance(record, dict) else {}
        except (KeyError, ValueError, RecursionError):
            return {}

    def kind_of(self, parts: Parts) -> str:
        kind = self.record_of(parts).get("_type")
        if not isinstance(kind, str):
            raise parts.damaged(_QDATA, "is of a tensor whose type the file's metadata don't say")
        return kind

    def block_of(self, parts: Parts) -> tuple[int, int] | None:
        """The block of scales; None: rows or the tensor."""
        data = self.record_of(parts).get("_data")
        block, qdata = data.get("block_size") if isinstance(data, dict) else None, parts.tensors[_QDATA]
        is_block = isinstance(block, list) and len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block)
        if not is_block or block is None or len(qdata.shape) != 2 or block[1] >= qdata.shape[1]:
            return None
        return block[0], block[1]


def _int4(parts: Parts, name: str) -> LazyTensor:
    qdata = parts.need(_QDATA, ["U8", "I8"], [None, None])
    n, k = qdata.shape[0], 2 * qdata.shape[1]
    scale = parts.need(_SCALE, FLOATS, [None, n])
    groups = scale.shape[0]
    zero = parts.need(_ZERO, FLOATS, [groups, n])
    if groups == 0 or k % groups:
        raise parts.damaged(_SCALE, f"has {groups} groups, which rows of {k} values don't divide into")
    form = WeightFormat(4, k // groups, "float32", "mins")

    def blocks() -> QuantizedTensor:
        scales, lows = (np.ascontiguousarray(part.load().astype(np.float32).T) for part in (scale, zero))
        return QuantizedTensor(form, nibbles(qdata.load().view(np.uint8)) ^ np.uint8(8), scales, lows - np.float32(8) * scales)

    return quantized(name, (n, k), "torchao int4", form, blocks)


def _int8(parts: Parts, name: str) -> LazyTensor:
    qdata, scale = parts.need(_QDATA, ["I8"], [None, None]), parts.need(_SCALE, FLOATS)
    n, k = qdata.shape
    count = int(np.prod(scale.shape))
    rows = 1 if count == 1 else n
    groups = count // rows
    if groups * rows != count or groups == 0 or k % groups:
        raise parts.damaged(_SCALE, f"has the shape {list(scale.shape)}, which a matrix [{n}, {k}] does not divide into")
    zeros = _zeros(parts, (rows, groups))
    is_symmetric = bool((zeros == 128).all())
    form = integers(8, group_size_of(k, k // groups), scale, has_zeros=not is_symmetric)

    def by_row(values: Array) -> Array:
        return np.broadcast_to(values.reshape(rows, groups), (n, groups))

    def blocks() -> QuantizedTensor:
        codes = qdata.load().view(np.uint8) + np.uint8(128)
        return integer_tensor(form, codes, by_row(scale.load()), 128 if is_symmetric else by_row(zeros))

    return quantized(name, (n, k), "torchao int8", form, blocks)


def _zeros(parts: Parts, shape: tuple[int, int]) -> Array:
    """Of codes offset to be unsigned."""
    if parts.get(_ZERO) is None:
        return np.full(shape, 128, np.uint8)
    zero = parts.need(_ZERO, (*FLOATS, "I8", "I32", "I64"))
    values = zero.load().astype(np.float32)
    if values.size != shape[0] * shape[1] or not (np.rint(values) == values).all() or abs(values).max(initial=0) > 127:
        raise parts.damaged(_ZERO, f"of the shape {list(values.shape)} is not of {list(shape)} small whole numbers")
    return (values.reshape(shape) + 128).astype(np.uint8)


def _open(settings: Settings) -> _Reader:
    return _Reader(settings.metadata)


METHODS = (
    Method(
        "torchao", ("torchao",), _open, ("quant_type", "quant_type_kwargs", "modules_to_not_convert", "include_input_output_embeddings",
        "untie_embedding_weights"),
    ),
)  # fmt: skip
