"""Weights as they are stored, read by kernels for GPUs."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from cupola.targets.emit import Value
from cupola.targets.generic.weights import StoredArguments
from cupola.targets.gpu.emit import load


def weight_value(weight: StoredArguments, row: Value, column: Value) -> Value:
    """An element as float32. Tables of codes are not for these kernels."""
    form = weight.format
    if form is None or weight.scales is None:
        return load(weight.weight, row, column)
    assert not form.table
    group = column // form.group_size
    code = T.cast(T.cast(weight.weight[row, column], "int32") - T.int32(form.zero), "float32")
    product = load(weight.scales, row, group) * code
    return product + load(weight.mins, row, group) if weight.mins is not None else product
