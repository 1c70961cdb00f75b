"""The Relax operations that may stand on a weight before it is stored, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from cupola.passes.simplify import axes_of

Array = npt.NDArray[Any]


def _slice(call: relax.Call, x: Array, axes: list[Any], begin: list[Any], end: list[Any], strides: list[Any] | None = None) -> Array:
    index: list[slice] = [slice(None)] * x.ndim
    steps = strides or [1] * len(axes)
    for axis, start, stop, step in zip(axes, begin, end, steps, strict=True):
        index[int(axis)] = slice(int(start), int(stop), int(step))
    return x[tuple(index)]


def _split(call: relax.Call, x: Array) -> list[Array]:
    where = call.attrs.indices_or_sections
    sections = [int(index) for index in where] if isinstance(where, Sequence) else int(where)
    return np.split(x, sections, axis=int(call.attrs.axis))


def _pad(call: relax.Call, x: Array, *_: Any) -> Array:
    widths = [int(width) for width in call.attrs.pad_width]
    return np.pad(x, list(zip(widths[::2], widths[1::2], strict=True)))


def _sum(call: relax.Call, x: Array) -> Array:
    axes = None if call.attrs.axis is None else tuple(int(axis) for axis in call.attrs.axis)
    return np.asarray(np.sum(x, axis=axes, keepdims=bool(call.attrs.keepdims)), dtype=x.dtype)


def _shape(shape: relax.ShapeExpr) -> list[int]:
    return [int(size) for size in shape]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "reshape": lambda call, x, shape: x.reshape(_shape(shape)),
    "permute_dims": lambda call, x: np.transpose(x, axes_of(call)),
    "concat": lambda call, parts: np.concatenate(parts, axis=int(call.attrs.axis)),
    "split": _split,
    "strided_slice": _slice,
    "nn.pad": _pad,
    "add": lambda call, x, y: x + y,
    "subtract": lambda call, x, y: x - y,
    "multiply": lambda call, x, y: x * y,
    "divide": lambda call, x, y: x / y,
    "negative": lambda call, x: -x,
    "take": lambda call, x, indices: np.take(x, indices, axis=int(call.attrs.axis)),
    "power": lambda call, x, y: x**y,
    "exp": lambda call, x: np.exp(x),
    "sum": _sum,
    "sqrt": lambda call, x: np.sqrt(x),
    "tanh": lambda call, x: np.tanh(x),
    "nn.softplus": lambda call, x: np.logaddexp(0, x * call.attrs.beta).astype(x.dtype) / x.dtype.type(call.attrs.beta),
    "expand_dims": lambda call, x: np.expand_dims(x, [int(axis) for axis in call.attrs.axis]),
    "squeeze": lambda call, x: x.reshape(_shape(call.ty.shape)),
}
"""By name; each gets the call and its evaluated arguments."""
