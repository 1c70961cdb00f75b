"""Attention that a model writes out itself, found in the traced graph by its causal mask, and replaced by the marker.

    before:  scores = q @ kᵀ · s;  m = cupola.masked(scores, window);  y = softmax(m) @ v
    after:   y = cupola.attention(q, k, v, scale=s, window)

`Mask` puts the operation in between where a model adds it to its scores. Casts, dropout of an evaluated model and reshapes that join
or part batch and heads may stand on the way; anything else does not, and the model is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx

from cupola.compiler.frontend.attention import UNNUMBERED
from cupola.runtime.errors import UnsupportedError

aten = torch.ops.aten
_LOWEST = -1e30  # a floor below which no score lies that attention sees
_PASSES = {"to", "_to_copy", "dropout", "clone", "contiguous", "view", "reshape", "_unsafe_view", "expand", "type_as"}


def find_attention(exported: torch.export.ExportedProgram) -> None:
    """Rewrites the graph in place.

    Raises:
        UnsupportedError: the mask is added to something else than scores, or they are used otherwise.
    """
    graph = exported.graph
    found = [node for node in graph.nodes if node.target is torch.ops.cupola.masked.default]
    for node in found:
        _replace(graph, node)
    if found:
        _erase_dead(graph)
        graph.lint()


def _erase_dead(graph: fx.Graph) -> None:
    """Erases what nothing uses: dropout too, which torch keeps as if it drew numbers, and what only asserts a type."""
    for node in reversed(graph.nodes):
        if (_name(node) in ("dropout", "_assert_tensor_metadata") and not node.users) or (not node.users and not node.is_impure()):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _replace(graph: fx.Graph, masked: fx.Node) -> None:
    product, scale = _scores(masked.args[0])
    query, key = _factors(product)
    result = _weighted(masked)
    value = result.args[1]
    heads = masked.args[0].meta["val"].shape[1]
    with graph.inserting_before(result):
        parts = [_with_batch(graph, each) for each in (query, key, value)]
        if any(each.meta["val"].shape[1] != heads for each in parts):
            _refuse("its heads are joined with something else")
        marked = _call(graph, torch.ops.cupola.attention.default, *parts, None, None, UNNUMBERED, scale, int(masked.args[1]), 0.0)
        output = _call(graph, aten.transpose.int, marked, 1, 2)
        if result.meta["val"].dim() == 3:
            output = _call(graph, aten.squeeze.dim, output, 0)
    output.meta["nn_module_stack"] = marked.meta["nn_module_stack"] = result.meta.get("nn_module_stack", {})
    result.replace_all_uses_with(output)


def _scores(node: Any) -> tuple[fx.Node, float]:
    """The product of queries and keys that scores come from, and what it is multiplied by."""
    scale = 1.0
    while True:
        name = _name(node)
        if name in _PASSES:
            node = node.args[0]
        elif name in ("div", "true_divide") and isinstance(node.args[1], int | float):
            scale, node = scale / node.args[1], node.args[0]
        elif name == "mul" and isinstance(node.args[1], int | float):
            scale, node = scale * node.args[1], node.args[0]
        elif name == "baddbmm" and _name(node.args[0]) == "zeros":
            return node, scale * float(node.kwargs.get("alpha", 1.0))
        elif name in ("matmul", "bmm"):
            return node, scale
        else:
            _refuse(f"it is added behind {name or 'something'}")


def _factors(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """q and k of their product."""
    query, transposed = product.args[-2:]
    last = product.meta["val"].dim() - 1
    if _name(transposed) == "transpose" and {axis % (last + 1) for axis in transposed.args[1:]} == {last - 1, last}:
        return query, transposed.args[0]
    _refuse("the scores are no product of queries and transposed keys")


def _weighted(masked: fx.Node) -> fx.Node:
    """The product of weights and values that masked scores end in."""
    node, is_normal = masked, False
    while True:
        users = list(node.users)
        live = [user for user in users if user.users or _name(user) in ("matmul", "bmm")]
        if len(live) != 1:
            _refuse(f"what it masks is used {len(live)} times")
        (user,) = live
        name = _name(user)
        if name in ("matmul", "bmm") and is_normal and user.args[0] is node:
            return user
        if name in ("softmax", "_softmax") and user.args[1] % node.meta["val"].dim() == node.meta["val"].dim() - 1:
            is_normal = True
        elif not (name in _PASSES or (name in ("maximum", "max", "clamp_min") and _is_floor(user.args[1]))):
            _refuse(f"what it masks goes through {name or 'something'}")
        node = user


def _is_floor(value: Any) -> bool:
    """True for a number, or a tensor of one, below every score."""
    if isinstance(value, fx.Node) and _name(value) in ("full", "scalar_tensor", "lift_fresh_copy", "full_like"):
        value = value.args[1] if _name(value) == "full" else value.args[0]
    return isinstance(value, int | float) and value < _LOWEST


def _with_batch(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """[H, n, D] -> [1, H, n, D]."""
    return _call(graph, aten.unsqueeze.default, node, 0) if node.meta["val"].dim() == 3 else node


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = _value(target, args)
    return node


def _value(target: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    mode = next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
    with mode, torch.no_grad():
        return target(*values)


def _name(node: Any) -> str:
    target = getattr(node, "target", None)
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else ""


def _refuse(why: str) -> NoReturn:
    raise UnsupportedError(f"it computes with its attention mask ({why}), where kernels know only causality and windows")
