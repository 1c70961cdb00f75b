"""Encoders: they quantize a weight, when it is packed, to the format of a `Storage`. The IR calls them by name.

cupola.weight.encode("w4g32", w)             # for f32 [N, K], codes [N, K], scales [N, K / 32] and perhaps mins
cupola.weight.encode_weighted("w4g32", w)    # the same, where errors of large weights count more
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from cupola.passes.encoders.f8 import encode_e4m3
from cupola.passes.encoders.groups import Array, Parts, encode_groups
from cupola.passes.encoders.w4 import encode_w4, encode_w4_mins, encode_w4_weighted
from cupola.passes.encoders.w8 import encode_w8
from cupola.passes.rewrite import shape_of
from cupola.passes.schemes.base import Storage
from cupola.passes.schemes.integers import storage
from cupola.targets.formats.format import WeightFormat, ZeroPoint
from cupola.targets.weight_functions import call_weight_function, function_of, weight_function

# By bits, zero point and table.
_ENCODERS: dict[tuple[int, ZeroPoint, str], Callable[[Array], Parts]] = {
    (4, "none", ""): encode_w4,
    (4, "mins", ""): encode_w4_mins,
    (8, "none", ""): encode_w8,
    (8, "none", "e4m3"): encode_e4m3,
}
_WEIGHTED = _ENCODERS | {(4, "none", ""): encode_w4_weighted}


@weight_function
def encode(format: str, weight: Array) -> Parts:
    """[N, K] -> codes, scales and perhaps mins, as `QuantizedTensor` has them."""
    form = WeightFormat.parse(format)
    return encode_groups(weight, form.group_size, _ENCODERS[form.bits, form.zero_point, form.table])


@weight_function
def encode_weighted(format: str, weight: Array) -> Parts:
    """The same, where errors of large weights count more, if the encoder knows how."""
    form = WeightFormat.parse(format)
    return encode_groups(weight, form.group_size, _WEIGHTED[form.bits, form.zero_point, form.table])


def encode_call(storage: Storage, weight: relax.Expr) -> relax.Call:
    """The call that encodes `weight` [N, K] for a quantized storage, whose result is a tuple."""
    form, (rows, width) = storage.format, shape_of(weight)
    assert form is not None
    padded = form.padded(width)
    out = [relax.TensorType([rows, padded], form.code_dtype)]
    out += [relax.TensorType([rows, padded // size], dtype) for _, size, dtype in form.factors]
    return call_weight_function(encode_weighted if storage.weighted else encode, [form.name, weight], out)


def encoded_weight(call: relax.Expr) -> tuple[Storage, relax.Expr] | None:
    """The storage and the weight that such a call has, or None if it is another one."""
    function = function_of(call)
    if function not in (encode, encode_weighted):
        return None
    name, weight = call.args[1].fields
    return storage(WeightFormat.parse(str(name.value)), weighted=function is encode_weighted), weight
