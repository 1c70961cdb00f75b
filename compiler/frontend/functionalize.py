"""Rewrites operations that change a tensor in place as ones that make a new one: TVM's importer loses what is written to a view."""

from __future__ import annotations

import torch
from torch import fx

from cupola.runtime.errors import UnsupportedError


def functionalize(exported: torch.export.ExportedProgram, model_type: str, file: str) -> torch.export.ExportedProgram:
    """The same graph without writes: `h[..., :2] = x` becomes `h = slice_scatter(h, x, …)`.

    Raises:
        UnsupportedError: the model keeps something in a buffer from call to call, or a write remained.
    """
    if not any(map(_writes, exported.graph.nodes)):
        return exported
    functional = exported.run_decompositions({})
    kept = sorted(functional.graph_signature.buffers_to_mutate.values())
    if kept:
        problem = f"it writes to its buffer {kept[0]}, and keeps between calls what cupola does not"
        raise UnsupportedError(problem, file=file, field=model_type, fix="models whose only memory is attention compile")
    for node in functional.graph.nodes:
        if _writes(node):
            raise UnsupportedError(f"{node.target} writes in place, in a way that torch cannot undo", file=file, field=model_type)
    return functional


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
