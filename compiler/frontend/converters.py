"""From torch operations to Relax, where TVM's importer has none or has them wrong. torch's meaning counts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from tvm import relax

from cupola.runtime.errors import UnsupportedError
from cupola.targets import ops

Converter: TypeAlias = Callable[[fx.Node, Any], relax.Var]


def _attention(node: fx.Node, importer: Any) -> relax.Var:
    q, k, v, slopes, sinks, layer, scale, window, softcap = importer.retrieve_args(node)
    batch, heads, tokens, _ = q.ty.shape
    marker = ops.Attention(q, k, v, slopes, sinks, layer, scale, window, softcap)
    return importer.block_builder.emit(marker.emit(relax.TensorType((batch, tokens, heads, v.ty.shape[3]), q.ty.dtype)))


def _expert_linear(node: fx.Node, importer: Any) -> relax.Var:
    x, index, weight, bias, transposed = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    weight = emit(relax.op.permute_dims(weight, [0, 2, 1])) if transposed else weight
    (tokens, choices), (experts, outputs, depth) = index.ty.shape, map(int, weight.ty.shape)
    weight = emit(relax.op.reshape(weight, [experts * outputs, depth]))
    bias = None if bias is None else emit(relax.op.reshape(bias, [experts * outputs]))
    if node.args[0].meta["val"].shape[1] == 1:
        x = emit(relax.op.reshape(x, [tokens, depth]))
    product = ops.ExpertLinear(x, index, weight, bias, experts)
    return emit(product.emit(relax.TensorType((tokens, choices, outputs), x.ty.dtype)))


def _topk(node: fx.Node, importer: Any) -> relax.Var:
    """Of the last axis, the largest first."""
    x, k, *rest = importer.retrieve_args(node)
    axis, largest = rest[:2] + [-1, True][len(rest) :]
    emit, last = importer.block_builder.emit, len(x.ty.shape) - 1
    if axis % (last + 1) != last or not largest:
        raise UnsupportedError("it takes topk of an axis other than the last one, or of the smallest")
    found = emit(relax.op.astype(emit(ops.TopK(x, k).call()), "int64"))
    return emit(relax.Tuple([emit(relax.op.gather_elements(x, found, axis=last)), found]))


def _largest(node: fx.Node, importer: Any) -> relax.Var:
    """The largest numbers along an axis, and where they stand."""
    x, axis, *rest = importer.retrieve_args(node)
    emit, keepdims = importer.block_builder.emit, bool(rest[0]) if rest else node.kwargs.get("keepdim", False)
    values, places = (emit(find(x, axis, keepdims)) for find in (relax.op.max, relax.op.argmax))
    return emit(relax.Tuple([values, places]))


def _vector_norm(node: fx.Node, importer: Any) -> relax.Var:
    """(Σ |x|^p)^(1/p)."""
    x, *rest = importer.retrieve_args(node)
    order, axes, keepdims = rest[:3] + [2, None, False][len(rest) :]
    emit = importer.block_builder.emit
    if order in (float("inf"), float("-inf"), 0):
        raise UnsupportedError(f"it takes a norm of order {order}")
    powers = emit(relax.op.power(emit(relax.op.abs(x)), relax.const(float(order), "float32")))
    total = emit(relax.op.sum(powers, axes, keepdims))
    return emit(relax.op.power(total, relax.const(1 / float(order), "float32")))


def _variance(node: fx.Node, importer: Any) -> relax.Var:
    """Over axes of known sizes, by n or, unbiased, by n - 1."""
    x, axes, *rest = importer.retrieve_args(node)
    unbiased = bool(rest[0]) if rest else node.kwargs.get("unbiased", True)
    keepdims = bool(rest[1]) if len(rest) > 1 else node.kwargs.get("keepdim", False)
    emit = importer.block_builder.emit
    away = emit(relax.op.subtract(x, emit(relax.op.mean(x, axes, True))))
    value = emit(relax.op.mean(emit(relax.op.multiply(away, away)), axes, keepdims))
    count = math.prod(int(x.ty.shape[axis]) for axis in axes)
    return emit(relax.op.multiply(value, relax.const(count / (count - 1), "float32"))) if unbiased else value


def _causal_conv(node: fx.Node, importer: Any) -> relax.Var:
    x, weight, bias, layer = importer.retrieve_args(node)
    return importer.block_builder.emit(ops.CausalConv(layer, None, None, None, None, x, weight, bias).emit(x.ty))


def _linear_attention(node: fx.Node, importer: Any) -> relax.Var:
    *tensors, layer = importer.retrieve_args(node)
    return importer.block_builder.emit(ops.LinearAttention(layer, None, None, None, None, *tensors).emit(tensors[2].ty))


def _selective_scan(node: fx.Node, importer: Any) -> relax.Var:
    *tensors, layer = importer.retrieve_args(node)
    return importer.block_builder.emit(ops.SelectiveScan(layer, None, None, None, None, *tensors).emit(tensors[0].ty))


def _concatenate(node: fx.Node, importer: Any) -> relax.Var:
    parts, *axis = importer.retrieve_args(node)
    return importer.block_builder.emit(relax.op.concat(parts, axis=axis[0] if axis else node.kwargs.get("dim", 0)))


def _repeat_interleave(node: fx.Node, importer: Any) -> relax.Var:
    value, repeats, *axis = importer.retrieve_args(node)
    return importer.block_builder.emit(relax.op.repeat(value, repeats, axis[0] if axis else node.kwargs.get("dim")))


def _layer_norm(node: fx.Node, importer: Any) -> relax.Var:
    """With weights and biases that may be None; TVM's importer expects them."""
    x, shape, *rest = importer.retrieve_args(node)
    weight, bias, epsilon = rest[:3] + [None, None, 1e-5][len(rest) :]
    sizes = [int(size) for size in shape]
    weight = relax.const(np.ones(sizes, "float32")) if weight is None else weight
    bias = relax.const(np.zeros(sizes, "float32")) if bias is None else bias
    axes = list(range(-len(sizes), 0))
    return importer.block_builder.emit(relax.op.nn.layer_norm(x, weight, bias, axes=axes, epsilon=epsilon))


def _rms_norm(node: fx.Node, importer: Any) -> relax.Var:
    """Spelled out, as most models do it; the weight may be None, and so may epsilon, which is then the type's."""
    x, shape, *rest = importer.retrieve_args(node)
    weight, epsilon = rest[:2] + [None, None][len(rest) :]
    emit, axes = importer.block_builder.emit, list(range(-len(shape), 0))
    mean = emit(relax.op.mean(emit(relax.op.multiply(x, x)), axes, keepdims=True))
    epsilon = float(np.finfo("float32").eps) if epsilon is None else epsilon
    out = emit(relax.op.multiply(x, emit(relax.op.rsqrt(emit(relax.op.add(mean, relax.const(epsilon, "float32")))))))
    return out if weight is None else emit(relax.op.multiply(out, weight))


def _deviation(node: fx.Node, importer: Any) -> relax.Var:
    """The standard deviation along axes of known size: TVM's own leaves out what torch subtracts from the number of elements."""
    x, axes, *rest = importer.retrieve_args(node)
    given = dict(zip(("unbiased", "keepdim"), rest, strict=False)) | dict(node.kwargs)
    correction = given.get("correction", given.get("unbiased", True))
    emit, count = importer.block_builder.emit, math.prod(int(x.ty.shape[axis]) for axis in axes)
    away = emit(relax.op.subtract(x, emit(relax.op.mean(x, axes, keepdims=True))))
    total = emit(relax.op.sum(emit(relax.op.multiply(away, away)), axes, keepdims=bool(given.get("keepdim", False))))
    scale = 1.0 / max(count - (1.0 if correction is None else float(correction)), 0.0)
    return emit(relax.op.sqrt(emit(relax.op.multiply(total, relax.const(scale, "float32")))))


def _product(node: fx.Node, importer: Any) -> relax.Var:
    """`multiply`, which torch keeps apart from `mul`."""
    return importer._binary_op(relax.op.multiply, operator.mul)(node)


def _reverse_axes(node: fx.Node, importer: Any) -> relax.Var:
    return importer.block_builder.emit(relax.op.permute_dims(importer.retrieve_args(node)[0]))


def _same_value(node: fx.Node, importer: Any) -> relax.Var:
    return importer.retrieve_args(node)[0]


def _true_division(node: fx.Node, importer: Any) -> relax.Var:
    """Of whole numbers too, which Relax would divide as C does."""
    operands = [_as_float(value, importer) for value in importer.retrieve_args(node)[:2]]
    return importer.block_builder.emit(relax.op.divide(*operands))


def _number_less_tensor(node: fx.Node, importer: Any) -> relax.Var:
    """In the type that torch gives it: TVM's own takes a whole number for int32."""
    x, number, *rest = importer.retrieve_args(node)
    if (rest[0] if rest else node.kwargs.get("alpha", 1)) != 1:
        raise UnsupportedError("it takes rsub with an alpha")
    emit, dtype = importer.block_builder.emit, str(node.meta["val"].dtype).removeprefix("torch.")
    x = x if x.ty.dtype == dtype else emit(relax.op.astype(x, dtype))
    return emit(relax.op.subtract(relax.const(number, dtype), x))


def _as_float(value: Any, importer: Any) -> relax.Expr:
    if not isinstance(value, relax.Expr):
        return relax.const(float(value), "float32")
    is_float = "float" in str(value.ty.dtype)
    return value if is_float else importer.block_builder.emit(relax.op.astype(value, "float32"))


def _reshape(node: fx.Node, importer: Any) -> relax.Var:
    """TVM's own compares the shapes with `==`, which symbolic sizes do not have; `simplify` removes reshapes that change nothing."""
    x, *sizes = importer.retrieve_args(node)
    return importer._emit_torch_reshape(x, list(sizes[0]) if isinstance(sizes[0], list | tuple) else sizes)


def _reshape_like(node: fx.Node, importer: Any) -> relax.Var:
    x, other = importer.retrieve_args(node)
    return importer.block_builder.emit(relax.op.reshape(x, other.ty.shape))


def _filled(value: float | None) -> Converter:
    """A new tensor with the type of the node, all `value`, or what the node's third argument says."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        made, x = node.meta["val"], importer.env[node.args[0]]
        given = node.args[1] if value is None else value
        if str(node.target).split(".")[1].startswith("new_"):
            shape = importer.retrieve_args(node)[1]
            given = node.args[2] if value is None else value
        else:
            shape = x.ty.shape
        dtype = str(made.dtype).removeprefix("torch.")
        return importer.block_builder.emit(relax.op.full(shape, relax.const(given, dtype), dtype))

    return convert


def _slice(node: fx.Node, importer: Any) -> relax.Var:
    """The tensor itself where it takes the whole axis; TVM's own can't tell that where it starts at minus the number of tokens."""
    axis = node.args[1] if len(node.args) > 1 else 0
    whole = statically_known_true(node.meta["val"].shape[axis] == node.args[0].meta["val"].shape[axis])
    return importer.retrieve_args(node)[0] if whole else importer._slice(node)


def _slice_scatter(node: fx.Node, importer: Any) -> relax.Var:
    """Part of a tensor replaced, as the parts before and behind joined with the new one; with steps, picked from both."""
    x, new, *rest = importer.retrieve_args(node)
    axis, start, end, step = rest + [0, None, None, 1][len(rest) :]
    emit, axis = importer.block_builder.emit, axis % len(x.ty.shape)
    length = x.ty.shape[axis]
    whole = node.meta["val"].shape[axis] == node.args[1].meta["val"].shape[axis]
    if whole:
        return new
    size = int(length)
    start, end, _ = slice(start, end).indices(size)
    if step != 1:
        picked = np.arange(size)
        picked[start:end:step] = size + np.arange(len(range(start, end, step)))
        return emit(relax.op.take(emit(relax.op.concat([x, new], axis=axis)), relax.const(picked, "int64"), axis=axis))
    parts = [emit(relax.op.strided_slice(x, [axis], [a], [b])) for a, b in ((0, start), (end, size)) if a < b]
    parts.insert(1 if start > 0 else 0, new)
    return emit(relax.op.concat(parts, axis=axis))


def _select_scatter(node: fx.Node, importer: Any) -> relax.Var:
    x, new, axis, index = importer.retrieve_args(node)[:4]
    emit, axis = importer.block_builder.emit, axis % len(x.ty.shape)
    size = int(x.ty.shape[axis])
    index %= size
    parts = [emit(relax.op.strided_slice(x, [axis], [a], [b])) for a, b in ((0, index), (index + 1, size)) if a < b]
    parts.insert(1 if index > 0 else 0, emit(relax.op.expand_dims(new, axis)))
    return emit(relax.op.concat(parts, axis=axis))


def _copy(node: fx.Node, importer: Any) -> relax.Var:
    """The second argument, with the shape and type of the first."""
    x, new = importer.retrieve_args(node)[:2]
    emit = importer.block_builder.emit
    new = new if new.ty.dtype == x.ty.dtype else emit(relax.op.astype(new, x.ty.dtype))
    same = tuple(node.args[0].meta["val"].shape) == tuple(node.args[1].meta["val"].shape)
    return new if same else emit(relax.op.broadcast_to(new, x.ty.shape))


def _mish(node: fx.Node, importer: Any) -> relax.Var:
    (x,), emit = importer.retrieve_args(node), importer.block_builder.emit
    return emit(relax.op.multiply(x, emit(relax.op.tanh(emit(relax.op.nn.softplus(x))))))


def _masked_fill(node: fx.Node, importer: Any) -> relax.Var:
    x, mask, value = importer.retrieve_args(node)[:3]
    value = value if isinstance(value, relax.Expr) else relax.const(value, x.ty.dtype)
    return importer.block_builder.emit(relax.op.where(mask, value, x))


def _index_put(node: fx.Node, importer: Any) -> relax.Var:
    """`x[mask] = number`, for a mask of the first axes; anything else is TVM's own."""
    x, indices, value = importer.retrieve_args(node)[:3]
    if len(indices) > 1 or indices[0].ty.dtype != "bool":
        return importer._index_put(node)
    emit, (mask,) = importer.block_builder.emit, indices
    missing = len(x.ty.shape) - len(mask.ty.shape)
    mask = emit(relax.op.expand_dims(mask, list(range(-missing, 0)))) if missing else mask
    return emit(relax.op.where(mask, value, x))


def _where(node: fx.Node, importer: Any) -> relax.Var:
    """With one or two plain numbers."""
    condition, *values = importer.retrieve_args(node)
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    values = [value if isinstance(value, relax.Expr) else relax.const(value, dtype) for value in values]
    return importer.block_builder.emit(relax.op.where(condition, *values))


def _clip(node: fx.Node, importer: Any) -> relax.Var:
    return importer._clamp(node)


CONVERTERS: dict[str, Converter] = {
    "attention.default": _attention,
    "expert_linear.default": _expert_linear,
    "topk.default": _topk,
    "max.dim": _largest,
    "linalg_vector_norm.default": _vector_norm,
    "var.dim": _variance,
    "causal_conv.default": _causal_conv,
    "concatenate.default": _concatenate,
    "linear_attention.default": _linear_attention,
    "selective_scan.default": _selective_scan,
    "repeat_interleave.self_int": _repeat_interleave,
    "layer_norm.default": _layer_norm,
    "multiply.Tensor": _product,
    "std.dim": _deviation,
    "std.correction": _deviation,
    "rms_norm.default": _rms_norm,
    "numpy_T.default": _reverse_axes,
    "to.device": _same_value,  # dtype stays: the model is traced in f32 throughout
    "rsub.Scalar": _number_less_tensor,
    "div.Tensor": _true_division,
    "reshape.default": _reshape,
    "view.default": _reshape,
    "_unsafe_view.default": _reshape,
    "view_as.default": _reshape_like,
    "reshape_as.default": _reshape_like,
    "slice.Tensor": _slice,
    "slice_scatter.default": _slice_scatter,
    "select_scatter.default": _select_scatter,
    "copy.default": _copy,
    "fill.Tensor": _copy,
    "fill.Scalar": _filled(None),
    "index_put.default": _index_put,
    "mish.default": _mish,
    "clip.default": _clip,
    "where.Scalar": _where,
    "where.ScalarOther": _where,
    "where.ScalarSelf": _where,
    "masked_fill.Scalar": _masked_fill,
    "masked_fill.Tensor": _masked_fill,
    **{f"{name}.default": _filled(0) for name in ("zeros_like", "empty_like", "new_zeros", "new_empty")},
    **{f"{name}.default": _filled(1) for name in ("ones_like", "new_ones")},
    **{f"{name}.default": _filled(None) for name in ("full_like", "new_full")},
}
"""By the overload's name, as TVM's importer looks them up."""

__all__ = ["CONVERTERS", "Converter"]
