"""Which weights a scheme stores as their source does, codes and scales with all of their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cupola.compiler.sources import LazyTensor, Source
from cupola.compiler.sources.base import Array
from cupola.compiler.weights import PackedWeight
from cupola.passes.schemes.base import Kept, Scheme, Storage, use_name
from cupola.passes.schemes.integers import storage
from cupola.targets.base import Target

_FLOATS = ("F32", "F16", "BF16", "F64")


def kept_weights(scheme: Scheme, source: Source, weights: Mapping[str, LazyTensor], targets: Sequence[Target]) -> Kept:
    """The weights of a quantized checkpoint that `scheme` keeps, by parameter: codes in groups of their own, of no more bits than it has.

    What stays of GGUF's blocks, the schemes say by their types.
    """
    if not source.quantized_by:
        return Kept()
    dtypes = set.intersection(*(set(target.abilities.float_dtypes) for target in targets))
    storages: dict[str, Storage] = {}
    for parameter, tensor in weights.items():
        name = use_name(parameter, tensor.is_turned)
        if tensor.format is not None and tensor.format.bits <= scheme.keeps_bits:
            storages[name] = storage(tensor.format)
        elif tensor.format is None and scheme.exact and tensor.dtype in dtypes and len(tensor.shape) == 2:
            storages[name] = Storage(tensor.dtype, tensor.dtype)
    orders = {name: _label(order) for name, tensor in weights.items() if name in storages and (order := tensor.order) is not None}
    return Kept(storages, orders)


def column_orders(kept: Kept, weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The parameters that the orders of columns are, by name."""
    found = {label: order for name, label in kept.orders.items() if (order := weights[name].order) is not None}
    return {label: LazyTensor(label, order.shape, "int32", partial(np.asarray, order), "I32") for label, order in found.items()}


def kept_notes(scheme: Scheme, source: Source, weights: Mapping[str, LazyTensor], packed: Sequence[PackedWeight]) -> list[str]:
    """For people: which weights of a quantized checkpoint, or of a GGUF file under an exact scheme, are stored as floats."""
    encoded = {each.name for weight in packed for each in weight.encodings}
    widened = sorted({tensor.name for tensor in weights.values() if tensor.stored_as not in _FLOATS} - encoded)
    is_told = bool(source.quantized_by) or (scheme.exact and source.format == "gguf")
    if not is_told or not widened:
        return []
    why = "no kernels take them as they come" if scheme.exact else "--quant keep-a16 stores what it can as it comes"
    return [f"{len(widened)} weights that come quantized, such as {widened[0]:.60}, are stored as floats: {why}"]


def _label(order: Array) -> str:
    return f"order.{hashlib.sha256(order.tobytes()).hexdigest()[:12]}"
