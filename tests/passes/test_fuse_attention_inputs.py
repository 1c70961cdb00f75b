from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import tvm
from tvm import relax

from cupola.passes.fuse_attention_inputs import fuse_attention_inputs
from cupola.targets import ops
from tests.passes.harness import apply

N, HEADS, GROUPS, DIM = tvm.tirx.Var("n", "int64"), 4, 2, 16
WIDTH = (HEADS + 2 * GROUPS) * DIM


@dataclass
class Graph:
    """Attention on columns of `x`, built call by call."""

    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)

    def var(self, name: str, *shape: int | tvm.tirx.Var, dtype: str = "float32") -> relax.Var:
        return relax.Var(name, relax.TensorType(shape, dtype))

    def columns(self, x: relax.Var, start: int, stop: int) -> relax.Var:
        return self.builder.emit(relax.op.strided_slice(x, [1], [start], [stop], assume_inbound=True))

    def heads(self, x: relax.Var, count: int) -> relax.Var:
        return self.builder.emit(relax.op.reshape(x, [N, count, DIM]))

    def flat(self, x: relax.Var, count: int) -> relax.Var:
        return self.builder.emit(relax.op.reshape(x, [N, count * DIM]))

    def rotate(self, x: relax.Var, cos: relax.Var, sin: relax.Var) -> relax.Var:
        """All of x's dimensions, or as many leading ones as the tables have."""
        dims = int(cos.ty.shape[1])
        if dims == DIM:
            return self.builder.emit(ops.Rotary(x, cos, sin).emit(x.ty))
        first = self.builder.emit(relax.op.strided_slice(x, [2], [0], [dims], [1]))
        rest = self.builder.emit(relax.op.strided_slice(x, [2], [dims], [np.iinfo("int64").max], [1]))
        return self.builder.emit(relax.op.concat([self.builder.emit(ops.Rotary(first, cos, sin).emit(first.ty)), rest], axis=2))


def attention(change: str = "", rotary_dim: int = DIM) -> relax.Function:
    g = Graph()
    x, cos, sin = g.var("x", N, WIDTH), g.var("cos", N, rotary_dim), g.var("sin", N, rotary_dim)
    pages = [g.var("k_pages", 1, 8, GROUPS, DIM, 16), g.var("v_pages", 1, 8, GROUPS, 16, DIM)]
    integers = [
        g.var(name, *shape, dtype="int32") for name, shape in (("slots", (N,)), ("starts", (3,)), ("lens", (2,)), ("tables", (2, 4)))
    ]
    with g.builder.function("forward", [x, cos, sin, *pages, *integers]):
        with g.builder.dataflow():
            widths = np.cumsum([0, HEADS * DIM, GROUPS * DIM, GROUPS * DIM]).tolist()
            q, k, v = (g.columns(x, a, b) for a, b in itertools.pairwise(widths))
            q3, k3 = g.heads(q, HEADS), g.heads(k, GROUPS)
            if change == "norm":
                q3 = g.builder.emit(relax.op.nn.relu(q3))
            if change != "no rotary":
                q3 = g.rotate(q3, cos, sin)
                k3 = k3 if change == "q alone" else g.rotate(k3, sin, cos) if change == "other tables" else g.rotate(k3, cos, sin)
            flat = (g.flat(q3, HEADS), g.flat(k3, GROUPS)) if change != "no rotary" else (q, k)
            op = ops.PagedAttention(*flat, v, None, None, tuple(pages), *integers, None, None, 0, 0, 0, "float32", 0, 0.25, 0, 0.0)
            result = g.builder.emit_output(op.emit(relax.TensorType([N, HEADS * DIM], "float32")))
        g.builder.emit_func_output(result)
    return g.builder.get()["forward"]


def fused(func: relax.Function) -> tuple[ops.PagedAttention, list[str]]:
    """The attention that the pass leaves, and the other operations that are left."""
    bindings = [b.value for block in apply(fuse_attention_inputs(), func)["forward"].body.blocks for b in block.bindings]
    found = [op for value in bindings if (op := ops.PagedAttention.match(value)) is not None]
    names = [str(value.op.name).removeprefix("relax.") for value in bindings if isinstance(value, relax.Call)]
    assert len(found) == 1
    return found[0], [name for name in names if name != "call_dps_packed"] + ["rotary" for value in bindings if ops.Rotary.match(value)]


@pytest.mark.parametrize("rotary_dim", [DIM, DIM // 2])
def test_reads_the_joined_matrix_and_rotates(rotary_dim: int) -> None:
    op, others = fused(attention(rotary_dim=rotary_dim))
    assert [tensor.name for tensor in (op.q, op.k, op.v, op.cos, op.sin)] == ["x", "x", "x", "cos", "sin"]
    assert (op.q_start, op.k_start, op.v_start) == (0, HEADS * DIM, (HEADS + GROUPS) * DIM)
    assert others == []


def test_what_lies_between_slice_and_rotation_stays() -> None:
    op, others = fused(attention("norm"))
    assert (op.k.name, op.v.name, op.cos.name, op.q_start, op.k_start) == ("x", "x", "cos", 0, HEADS * DIM)
    assert others == ["strided_slice", "reshape", "nn.relu", "reshape"]


def test_without_rotary_slices_are_read_in_place() -> None:
    op, others = fused(attention("no rotary"))
    assert [tensor.name for tensor in (op.q, op.k, op.v)] == ["x"] * 3 and op.cos is None and others == []


@pytest.mark.parametrize("change", ["q alone", "other tables"])
def test_rotations_that_differ_stay(change: str) -> None:
    op, others = fused(attention(change))
    assert op.cos is None and op.v.name == "x" and "rotary" in others
