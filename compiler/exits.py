"""Finds where the layers of a model end among the calls of its plan, so that a prefix of them can run (`runtime/artifact/plan.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tvm import relax

from cupola.runtime.artifact.plan import BUFFER, Place, Plan, PlanExit

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # its number in a weight's name: a list of modules is a list of layers


def find_exits(func: relax.Function, weights: Sequence[str], plan: Plan) -> tuple[PlanExit, ...]:
    """The end of each layer, or none if the layers are not apart.

    A layer ends at the first place behind all calls that read its weights where all that later calls read is one value, beside what was
    made before the first layer and is read by later ones, such as rotary angles.

    Args:
        func: `forward` before its memory is planned, when every value has a name of its own.
        weights: the names of its last parameters.
        plan: what became of it, call by call.
    """
    flow = _Flow(func)
    numbers = {
        param: int(found[1])
        for param, name in zip(_last(func.params, len(weights)), weights, strict=True)
        if (found := _LAYER.search(name))
    }
    layers = [{numbers[value] for value in call if value in numbers} for call in flow.calls]
    order = [number for found in layers for number in sorted(found)]
    if not order or order != sorted(order) or set(order) != set(range(order[-1] + 1)) or len(layers) != len(plan.calls):
        return ()
    starts = [min(i for i, found in enumerate(layers) if number in found) for number in range(order[-1] + 1)]
    ends = [max(i for i, found in enumerate(layers) if number in found) + 1 for number in range(order[-1] + 1)]
    exits = [_exit(flow, starts[0], end, following, plan) for end, following in zip(ends, [*starts[1:], len(layers)], strict=True)]
    return _alike([found for found in exits if found is not None], len(ends), plan)


class _Flow:
    """The calls of a function, each as the tensors that it reads; of each value, the call that makes it and the last one that reads it."""

    def __init__(self, func: relax.Function) -> None:
        self.calls: list[list[Any]] = []
        self.made: dict[Any, int] = {}
        self.last_read: dict[Any, int] = {}
        self._same: dict[Any, Any] = {}  # views and fields, and what they are of
        for binding in (binding for block in func.body.blocks for binding in block.bindings):
            self._bind(binding.var, binding.value)
        for value in self._values(func.body.body):
            self.last_read[value] = len(self.calls)

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Call) and str(value.op.name).startswith("relax.call_tir"):
            read = [self._root(field) for field in value.args[1].fields if isinstance(field.ty, relax.TensorType)]
            self.last_read |= dict.fromkeys(read, len(self.calls))
            self.made[var] = len(self.calls)
            self.calls.append(read)
        elif isinstance(value, relax.Call | relax.TupleGetItem | relax.Var):
            self._same[var] = self._root(value.args[0] if isinstance(value, relax.Call) else getattr(value, "tuple_value", value))
        elif isinstance(value, relax.Tuple):
            self._same[var] = value

    def _root(self, value: Any) -> Any:
        return self._same.get(value, value)

    def _values(self, result: Any) -> list[Any]:
        whole = self._root(result)
        return [self._root(field) for field in whole.fields] if isinstance(whole, relax.Tuple) else [whole]


def _exit(flow: _Flow, first: int, end: int, following: int, plan: Plan) -> PlanExit | None:
    """The first place from call `end` on, up to call `following` of the next layer, where one value is all that is read of what was made.

    What was made before call `first`, and is still read in later layers, is there whatever runs between.
    """
    for at in range(end, following + 1):
        read = {value: flow.last_read.get(value, -1) for value, made in flow.made.items() if made < at}
        live = [value for value, last in read.items() if at <= last and not (flow.made[value] < first and last >= following)]
        if len(live) == 1 and at < len(flow.calls):
            place = _place(flow, live[0], at, plan)
            return PlanExit(at, place.index) if place.kind == BUFFER else None
    return None


def _place(flow: _Flow, value: Any, at: int, plan: Plan) -> Place:
    """Where the value stands at that call: there the next call that reads it finds it."""
    reader = next(i for i in range(at, len(flow.calls)) if value in flow.calls[i])
    return plan.calls[reader].pointers[flow.calls[reader].index(value)]


def _alike(exits: Sequence[PlanExit], num_layers: int, plan: Plan) -> tuple[PlanExit, ...]:
    """The exits, if there is one for each layer, and what they hand over can stand for each other."""
    if len(exits) != num_layers:
        return ()
    buffers = [plan.buffers[found.buffer] for found in exits]
    rows = [buffer.shape[0] for buffer in buffers]
    alike = {(buffer.dtype, buffer.shape[1:]) for buffer in buffers}
    return tuple(exits) if len(alike) == 1 and set(rows[:-1]) <= {"n"} and rows[-1] in ("n", "r") else ()


def _last(values: Sequence[Any], count: int) -> Sequence[Any]:
    return list(values)[len(values) - count :]
