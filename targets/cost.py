"""The cost that a kernel declares, so that its measured time can be compared with what the machine can do."""

from __future__ import annotations

import json
from dataclasses import asdict

import tvm
from tvm import tirx

from cupola.runtime.artifact.tensors import KernelCost, KernelSpec

_ATTRIBUTE = "cupola.cost"


def with_cost(kernel: tirx.PrimFunc, cost: KernelCost) -> tirx.PrimFunc:
    """The kernel, with what one call of it does written on it."""
    return kernel.with_attr(_ATTRIBUTE, json.dumps(asdict(cost)))


def list_kernels(mod: tvm.IRModule) -> tuple[KernelSpec, ...]:
    """Every kernel of a module by name; one that says nothing of its cost only moves its arguments."""
    kernels = ((var.name_hint, func) for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc))
    return tuple(KernelSpec(name, _cost(func)) for name, func in sorted(kernels, key=lambda kernel: kernel[0]))


def _cost(kernel: tirx.PrimFunc) -> KernelCost:
    text = kernel.attrs.get(_ATTRIBUTE) if kernel.attrs else None
    return KernelCost() if text is None else KernelCost(**json.loads(str(text)))
