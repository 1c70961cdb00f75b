"""Finds layers that carry something from token to token other than through attention and the recurrences that kernels know.

Such a layer (another convolution, a shift) traces without complaint, and would then decode wrongly: between
steps only the state of known layers is kept, and one call holds tokens of many sequences side by side. So every operation on a tensor with
a token axis must treat tokens one by one; one that is not known to do so is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cupola.compiler.frontend.recurrence import MARKERS
from cupola.runtime.errors import UnsupportedError

aten = torch.ops.aten

# Operations that never move data along an axis with all of its elements kept in order.
_ONE_BY_ONE = {
    "aten.linear", "aten.addmm", "aten.embedding", "aten.layer_norm", "aten.rms_norm", "aten.dropout", "aten.to", "aten._to_copy",
    "aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.type_as", "aten.expand", "aten.permute", "aten.transpose",
    "aten.unsqueeze", "aten.squeeze", "aten.numpy_T", "aten.t", "aten.ones_like", "aten.zeros_like",
    "aten.full_like", "aten.empty_like", "aten.new_empty", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.expand_as",
    "aten.broadcast_to", "cupola.expert_linear",
}  # fmt: skip
_MARKERS = {"cupola.attention", *(marker._opoverload._schema.name.replace("::", ".") for marker in MARKERS)}
_KEEPS_AXES = {"aten.view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten._unsafe_view", "aten.view_as", "aten.reshape_as"}
# name -> position of the axes among the arguments
_ALONG_AXES = {
    "aten.mean": 1, "aten.sum": 1, "aten.amax": 1, "aten.amin": 1, "aten.var": 1, "aten.std": 1, "aten.softmax": 1, "aten._softmax": 1,
    "aten.log_softmax": 1, "aten.slice": 1, "aten.select": 1, "aten.split": 2, "aten.split_with_sizes": 2, "aten.chunk": 2,
    "aten.cat": 1, "aten.stack": 1, "aten.unbind": 1, "aten.repeat_interleave": 2, "aten.topk": 2,
    "aten.cumsum": 1, "aten.roll": 2, "aten.flip": 1, "aten.concat": 1, "aten.concatenate": 1,
    "aten.max": 1, "aten.min": 1, "aten.argmax": 1, "aten.linalg_vector_norm": 2,
}  # fmt: skip

_UNTAGGED = {"aten.__or__", "aten.__and__", "aten.__xor__", "aten.multiply", "aten.subtract", "aten.divide", "aten.true_divide"}

_DEFAULT_AXES = {
    "aten.topk": -1, "aten.split": 0, "aten.split_with_sizes": 0, "aten.chunk": 0, "aten.cat": 0, "aten.concat": 0,
    "aten.concatenate": 0, "aten.stack": 0, "aten.unbind": 0,
}  # fmt: skip


def check_token_mixing(exported: torch.export.ExportedProgram, model_type: str, file: str) -> None:
    """Raises UnsupportedError, naming the module and the operation, if a layer mixes tokens outside attention."""
    graph = exported.graph
    for node in reversed(graph.nodes):  # torch keeps dead values alive only to assert their types
        if _name(node) == "aten._assert_tensor_metadata":
            graph.erase_node(node)
    graph.eliminate_dead_code()
    tokens = next(node for node in graph.nodes if node.op == "placeholder" and node.name == "tokens").meta["val"].shape[0]
    num_markers = 0
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        num_markers += _name(node) in _MARKERS
        problem = _problem(node, tokens)
        if problem:
            where = f"{model_type}, {_module_of(node)}"
            raise UnsupportedError(
                f"{_name(node)} {problem}, which cupola does not keep between steps",
                file=file,
                field=where,
                fix="models whose only memory is attention, or a recurrence that cupola knows, compile",
            )
    if not num_markers:
        raise UnsupportedError("no attention and no known recurrence was found in the traced model", file=file, field=model_type)


def _problem(node: fx.Node, tokens: Any) -> str | None:
    name, inputs = _name(node), [value for value in _tensors(node.args) if _axis(value, tokens) is not None]
    if not inputs:
        made = node.meta.get("val")
        counts = name in ("aten.arange", "aten.linspace") and isinstance(made, torch.Tensor) and _axis(made, tokens) is not None
        return "numbers tokens by their place in the call instead of by their positions" if counts else None
    if _is_pointwise(node):
        return _pointwise(node, inputs, tokens)
    if name in _ONE_BY_ONE or name in _MARKERS or name == "getitem" or name == "aten.sym_size":
        return None
    if name in _KEEPS_AXES:
        return None if _num_before(node.meta["val"], tokens) == _num_before(inputs[0], tokens) else "merges the token axis with another"
    if name in _ALONG_AXES:
        return _along_axes(node, inputs[0], tokens, _ALONG_AXES[name])
    return _SPECIAL.get(name, _unknown)(node, inputs, tokens)


def _num_before(value: torch.Tensor, tokens: Any) -> object:
    """The product of the sizes before the token axis, by which a reshape that keeps tokens apart is known."""
    axis = _axis(value, tokens)
    return None if axis is None else math.prod(value.shape[:axis])


def _pointwise(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    mixing = _aligned(inputs, tokens)
    if mixing:
        return mixing
    counts = any(isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), torch.SymInt | torch.SymFloat) for arg in node.args)
    return "computes with the number of tokens in the call" if counts else None


def _unknown(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    return "may carry state from token to token"


def _matmul(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    left, right = (arg.meta["val"] for arg in node.args[-2:])  # behind what `baddbmm` adds
    axes = _axis(left, tokens), _axis(right, tokens)
    if None not in axes:  # a product for each token, of its own two matrices
        places = {axis - value.dim() for axis, value in zip(axes, (left, right), strict=True) if axis is not None}
        return None if len(places) == 1 and max(places) < -2 else "multiplies tokens with each other"
    contracted = {left.dim() - 1} if left is inputs[0] else {right.dim() - 2}
    return "multiplies tokens with each other" if _axis(inputs[0], tokens) in contracted else None


def _index(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    """Picking the rows that want logits is the one allowed way to drop tokens."""
    rows = next(n for n in node.graph.nodes if n.op == "placeholder" and n.name == "logit_rows").meta["val"].shape[0]
    axis, picked = _axis(node.args[0].meta["val"], tokens), list(node.args[1])  # a table without tokens is looked up, like an embedding
    untouched = axis is None or axis >= len(picked) or picked[axis] is None
    by_token = any(_axis(value, tokens) is not None for value in _tensors(picked))
    if axis is not None and untouched and by_token:
        return "combines every token with every other"
    return None if untouched or _axis(node.meta["val"], rows) is not None else "picks tokens by index"


def _gather(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    """A table without tokens may be looked up by token, as embeddings are; along tokens nothing may."""
    source, axis = node.args[0].meta["val"], int(node.args[1])
    return "picks tokens by index" if _axis(source, tokens) == axis % source.dim() else _aligned(inputs, tokens)


def _scatter(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    """scatter(x, axis, index, what) and the like: all have the same axes, and no token's index may name another."""
    rank = inputs[0].dim()
    return "writes to tokens by index" if int(node.args[1]) % rank == _axis(inputs[0], tokens) else _aligned(inputs, tokens)


def _slice_scatter(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    axis, value = int(node.args[2] if len(node.args) > 2 else 0) % inputs[0].dim(), node.meta["val"]
    whole = _axis(node.args[1].meta["val"], tokens) == axis
    return "writes to some of the tokens" if axis == _axis(value, tokens) and not whole else _aligned(inputs, tokens)


def _select_scatter(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    value = node.meta["val"]
    return "writes to one token" if int(node.args[2]) % value.dim() == _axis(value, tokens) else None


def _index_put(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    """`x[mask] = number` treats tokens one by one; anything else writes where its indices say."""
    x, indices, value = node.args[:3]
    masks = [each.meta["val"] for each in indices if each is not None]
    is_mask = len(indices) == len(masks) == 1 and masks[0].dtype == torch.bool and value.meta["val"].numel() == 1
    return _aligned([x.meta["val"], _unsqueezed(masks[0], x.meta["val"].dim())], tokens) if is_mask else "writes to tokens by index"


def _unsqueezed(value: torch.Tensor, rank: int) -> torch.Tensor:
    return value[(..., *[None] * (rank - value.dim()))]


def _repeat(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    grown = len(node.args[1]) - inputs[0].dim()
    return None if node.args[1][(_axis(inputs[0], tokens) or 0) + grown] == 1 else "repeats tokens"


def _index_select(node: fx.Node, inputs: list[torch.Tensor], tokens: Any) -> str | None:
    table = node.args[0].meta["val"]
    return "combines or shifts tokens" if _axis(table, tokens) == int(node.args[1]) % table.dim() else None


def _aligned(inputs: list[torch.Tensor], tokens: Any) -> str | None:
    axes = {(_axis(value, tokens) or 0) - value.dim() for value in inputs}
    return "combines every token with every other" if len(axes) > 1 else None


_SPECIAL: dict[str, Callable[[fx.Node, list[torch.Tensor], Any], str | None]] = {
    "aten.matmul": _matmul, "aten.mm": _matmul, "aten.bmm": _matmul, "aten.baddbmm": _matmul,
    "aten.index": _index, "aten.gather": _gather, "aten.index_select": _index_select,
    "aten.scatter": _scatter, "aten.scatter_add": _scatter, "aten.slice_scatter": _slice_scatter,
    "aten.index_put": _index_put, "aten.select_scatter": _select_scatter, "aten.repeat": _repeat,
    **dict.fromkeys(("aten.copy", "aten.fill", "aten.where"), lambda _, inputs, tokens: _aligned(inputs, tokens)),
}  # fmt: skip


def _along_axes(node: fx.Node, value: torch.Tensor, tokens: Any, place: int) -> str | None:
    axes = node.args[place] if len(node.args) > place else node.kwargs.get("dim", _DEFAULT_AXES.get(_name(node)))
    if axes is None:
        return "combines tokens"
    listed = axes if isinstance(axes, list | tuple) else [axes]
    grows = 1 if _name(node) == "aten.stack" else 0
    touched = {int(axis) % (value.dim() + grows) for axis in listed}
    if _name(node) == "aten.slice" and _axis(node.meta["val"], tokens) is not None:
        return None  # the whole axis
    return "combines or shifts tokens" if _axis(value, tokens) in touched and not grows else None


def _is_pointwise(node: fx.Node) -> bool:
    """True for what torch says is, and for operations of which it does not say so: of booleans, and those by another name."""
    return isinstance(node.target, torch._ops.OpOverload) and (torch.Tag.pointwise in node.target.tags or _name(node) in _UNTAGGED)


def _name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target.namespace}.{node.target._schema.name.split('::')[-1]}"
    return getattr(node.target, "__name__", str(node.target))


def _tensors(arguments: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def visit(node: fx.Node) -> fx.Node:
        value = node.meta.get("val")
        found.extend(v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, torch.Tensor))
        return node

    fx.node.map_arg(arguments, visit)
    return found


def _axis(value: Any, tokens: Any) -> int | None:
    """The axis of `value` whose length is the token count, or a multiple: tokens merged with the axes behind them, such as heads."""
    if not isinstance(value, torch.Tensor):
        return None
    for axis, size in enumerate(value.shape):
        if _same_size(size, tokens):
            return axis
    return None


def _same_size(size: Any, tokens: Any) -> bool:
    if isinstance(tokens, int):
        return isinstance(size, int) and size == tokens
    return isinstance(size, torch.SymInt) and (size.node.expr / tokens.node.expr).is_Integer


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1].removeprefix("model.") if paths else "the model"
