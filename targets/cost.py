"""The cost of kernels, so that times measured or expected can be held against what a machine can do.

What a call does follows from its operation, whatever the target: `cost_of`. A kernel says itself what it multiplies in, if that is not
float32 (`with_cost`), and a kernel of a GPU how many blocks it launches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import tvm
from tvm import relax, tirx

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.runtime.artifact.tensors import ITEM_BYTES, KernelCost, KernelSpec
from cupola.targets.formats.format import WeightFormat
from cupola.targets.native.interface import size_names
from cupola.targets.native.sizes import size_of
from cupola.targets.ops import Argmax, Embedding, ExpertLinear, GatedExpertLinear, GatedLinear, Linear, PagedAttention, factors_of

_ATTRIBUTE = "cupola.cost"


def with_cost(kernel: tirx.PrimFunc, cost: KernelCost) -> tirx.PrimFunc:
    """The kernel, with what one call of it does written on it."""
    return kernel.with_attr(_ATTRIBUTE, json.dumps(asdict(cost)))


def with_cost_of(kernel: tirx.PrimFunc, call: relax.Call) -> tirx.PrimFunc:
    """The kernel that was found for `call`, with the cost of that call, in the arithmetic that the kernel names."""
    cost = cost_of(call)
    return kernel if cost is None else with_cost(kernel, replace(cost, arithmetic=_cost(kernel).arithmetic))


def cost_of(call: relax.Call) -> KernelCost | None:
    """The cost of an operation; None for one that only moves its arguments."""
    if call.op.name == "relax.take":
        table = call.args[0].ty
        return KernelCost(gathered_bytes_per_row=_row_bytes(table), num_gathered=1) if table.ndim == 2 and _is_known(table) else None
    found = ((op.match(call), cost) for op, cost in _COSTS)
    return next((cost(op, call.ty) for op, cost in found if op is not None), None)


def list_kernels(mod: tvm.IRModule) -> tuple[KernelSpec, ...]:
    """Every kernel of a module by name; one that says nothing of its cost only moves its arguments."""
    kernels = ((var.name_hint, func) for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc))
    return tuple(KernelSpec(name, _cost(func), _launches(func)) for name, func in sorted(kernels, key=lambda kernel: kernel[0]))


def _linear(op: Linear | GatedLinear, _: relax.TensorType) -> KernelCost:
    return KernelCost(operations_per_row=2 * int(op.weight.ty.shape[0]) * int(op.x.ty.shape[-1]))


def _attention(op: PagedAttention, out: relax.TensorType) -> KernelCost:
    """Of each query head, a product over the key's dimensions and one over the value's."""
    end = op.k_start if op.q.same_as(op.k) else int(op.q.ty.shape[1])
    return KernelCost(operations_per_pair=2 * (end - op.q_start + int(out.shape[1])), window=op.window)


def _embedding(op: Embedding, _: relax.TensorType) -> KernelCost:
    """Codes, which kernels may hold several in a byte, and what stands beside them."""
    bits, tensors = WeightFormat.parse(op.format).bits, factors_of(op)
    codes = -(-int(op.weight.ty.shape[1]) * bits // 8)
    return KernelCost(gathered_bytes_per_row=codes + sum(_row_bytes(t.ty) for t in tensors), num_gathered=1 + len(tensors))


def _experts(op: ExpertLinear | GatedExpertLinear, _: relax.TensorType) -> KernelCost:
    """Of each row, the experts that it goes to: their products, and their part of the weight, with scales and mins."""
    (rows, depth), choices = map(int, op.weight.ty.shape), int(op.index.ty.shape[1])
    rows //= op.num_experts
    bits = WeightFormat.parse(op.format).bits if op.format else 8 * ITEM_BYTES[str(op.weight.ty.dtype)]
    row_bytes = -(-depth * bits // 8) + sum(_row_bytes(tensor.ty) for tensor in factors_of(op))
    operations = 2 * choices * rows * int(op.x.ty.shape[-1])
    return KernelCost(operations_per_row=operations, gathered_bytes_per_row=choices * rows * row_bytes, num_gathered=1)


def _argmax(op: Argmax, _: relax.TensorType) -> KernelCost:
    """One block of a row's logits."""
    return KernelCost(gathered_bytes_per_row=4 * MAXIMA_BLOCK, num_gathered=1)


_COSTS: tuple[tuple[Any, Callable[[Any, relax.TensorType], KernelCost]], ...] = (
    (Linear, _linear),
    (GatedLinear, _linear),
    (ExpertLinear, _experts),
    (GatedExpertLinear, _experts),
    (PagedAttention, _attention),
    (Embedding, _embedding),
    (Argmax, _argmax),
)


def _row_bytes(matrix: relax.TensorType) -> int:
    return int(matrix.shape[1]) * ITEM_BYTES[str(matrix.dtype)]


def _is_known(tensor: relax.TensorType) -> bool:
    return all(isinstance(size, tirx.IntImm) for size in tensor.shape)


def _cost(kernel: tirx.PrimFunc) -> KernelCost:
    text = kernel.attrs.get(_ATTRIBUTE) if kernel.attrs else None
    return KernelCost() if text is None else KernelCost(**json.loads(str(text)))


def _launches(kernel: tirx.PrimFunc) -> tuple[int | str, ...]:
    """The number of blocks of each launch, over the kernel's sizes."""
    found: list[dict[str, Any]] = []  # by the axes of threads

    def visit(node: Any, launch: dict[str, Any] | None) -> None:
        tag, extent = _threads(node)
        if tag:
            if launch is None:
                found.append(launch := {})
            launch[tag] = extent
        for name in ("body", "block", "then_case", "else_case"):
            if (child := getattr(node, name, None)) is not None:
                visit(child, launch)
        for child in node.seq if isinstance(node, tirx.SeqStmt) else ():
            visit(child, launch)

    visit(kernel.body, None)
    names = size_names(kernel)
    return tuple(_product([size_of(extent, names) for tag, extent in launch.items() if tag.startswith("blockIdx")]) for launch in found)


def _threads(node: Any) -> tuple[str, Any]:
    """The axis of threads that a statement spreads what is within it over, and how far; "" if it is another one."""
    if isinstance(node, tirx.AttrStmt) and node.attr_key == "thread_extent":
        return str(node.node.thread_tag), node.value
    if isinstance(node, tirx.For) and node.kind == tirx.ForKind.THREAD_BINDING:
        return str(node.thread_binding.thread_tag), node.extent
    return "", None


def _product(sizes: list[int | str]) -> int | str:
    if all(isinstance(size, int) for size in sizes):
        return math.prod(size for size in sizes if isinstance(size, int))
    return " * ".join(f"({size})" for size in sizes)
