"""Activations that only quantized linear layers read pass between kernels in the target's type."""

from __future__ import annotations

import dataclasses

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from cupola.passes.narrow_activations import narrow_activations
from cupola.targets.base import Target
from cupola.targets.ops import GatedLinear, Linear, PagedAttention
from cupola.targets.registry import get_target
from tests.passes.harness import apply, stays


def target(activations: str = "bfloat16") -> Target:
    target = get_target("cpu:generic")
    return dataclasses.replace(target, abilities=dataclasses.replace(target.abilities, activations=activations))


def function(*, quantize_x: int = 32, norm: bool = False, read_twice: bool = False, rows: bool = False) -> relax.Function:
    """A gated layer and one that reads its result, or rows of it."""
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x, scale = relax.Var("x", R.Tensor([n, 32], "float32")), relax.Var("scale", R.Tensor([32], "float32"))
    up, up_scales = relax.Var("up", R.Tensor([64, 32], "int8")), relax.Var("up_scales", R.Tensor([64, 1], "float16"))
    down, down_scales = relax.Var("down", R.Tensor([8, 32], "int8")), relax.Var("down_scales", R.Tensor([8, 1], "float16"))
    chosen = relax.Var("rows", R.Tensor([n], "int32"))
    with builder.function("forward", [x, chosen, scale, up, up_scales, down, down_scales]):
        with builder.dataflow():
            hidden = builder.emit(GatedLinear(x, up, None, "silu", up_scales, quantize_x=32).emit(R.Tensor([n, 32], "float32")))
            read = builder.emit(relax.op.take(hidden, chosen, axis=0, mode="clip")) if rows else hidden
            layer = Linear(read, down, None, None, "", down_scales, norm=scale if norm else None, quantize_x=quantize_x)
            result = builder.emit(layer.emit(R.Tensor([n, 8], "float32")))
            out = builder.emit_output(relax.Tuple([result, hidden] if read_twice else [result]))
        builder.emit_func_output(out)
    return builder.get()["forward"]


def test_what_one_layer_hands_the_next() -> None:
    mod = apply(narrow_activations(target()), function())
    hidden, result = (binding.var for binding in mod["forward"].body.blocks[0].bindings[:2])
    assert [str(var.ty.dtype) for var in (hidden, result)] == ["bfloat16", "float32"]
    layer = Linear.match(mod["forward"].body.blocks[0].bindings[1].value)
    assert layer is not None and layer.x.same_as(hidden)


def test_what_a_layer_reads_rows_of() -> None:
    mod = apply(narrow_activations(target()), function(rows=True))
    types = [str(binding.var.ty.dtype) for binding in mod["forward"].body.blocks[0].bindings[:3]]
    assert types == ["bfloat16", "bfloat16", "float32"]


@pytest.mark.parametrize("what", [{"quantize_x": 0}, {"norm": True}, {"read_twice": True}, {"norm": True, "rows": True}], ids=str)
def test_stays_where_it_is_not_rounded_or_read_elsewhere(what: dict[str, int]) -> None:
    stays(narrow_activations(target()), function(**what))


@pytest.mark.parametrize(("pages", "quantize_x", "expected"), [("bfloat16", 32, True), ("float16", 32, False), ("int8", 0, False)])
def test_what_attention_reads(pages: str, quantize_x: int, expected: bool) -> None:
    """It rounds where K/V is as narrow, and only quantized layers can write what is."""
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x = relax.Var("x", R.Tensor([n, 32], "float32"))
    weight, scales = relax.Var("weight", R.Tensor([48, 32], "int8")), relax.Var("scales", R.Tensor([48, 1], "float16"))
    k_pages, v_pages = (relax.Var(f"{name}_pages", R.Tensor([1, 4, 1, *shape], pages)) for name, shape in (("k", (16, 8)), ("v", (8, 16))))
    tables = [
        relax.Var(name, R.Tensor(shape, "int32")) for name, shape in (("slots", [n]), ("starts", [2]), ("lens", [1]), ("tables", [1, 4]))
    ]
    with builder.function("forward", [x, weight, scales, k_pages, v_pages, *tables]):
        with builder.dataflow():
            layer = Linear(x, weight, None, None, "", scales, quantize_x=quantize_x)
            qkv = builder.emit(layer.emit(R.Tensor([n, 48], "float32")))
            cache = ((k_pages, v_pages), *tables, None, None)
            op = PagedAttention(qkv, qkv, qkv, None, None, *cache, 0, 16, 32, pages, layer=0, scale=1.0, window=0, softcap=0.0)
            result = builder.emit_output(op.emit(R.Tensor([n, 16], "float32")))
        builder.emit_func_output(result)
    mod = apply(narrow_activations(target()), builder.get()["forward"])
    assert (mod["forward"].body.blocks[0].bindings[0].var.ty.dtype == "bfloat16") is expected


def test_stays_on_targets_that_want_float32() -> None:
    stays(narrow_activations(target("float32")), function())
