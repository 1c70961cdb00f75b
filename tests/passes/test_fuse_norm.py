"""A norm moves into the linear layer that alone reads it."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.script import relax as R

from cupola.passes.fuse_norm import fuse_norm
from cupola.targets.ops import GatedLinear, Linear
from tests.passes.harness import apply, stays


def function(uses: int, *, gated: bool = False, of: str = "float32") -> relax.Function:
    """`uses` layers over one norm's result."""
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x, scale = relax.Var("x", R.Tensor([n, 8], "float32")), relax.Var("scale", R.Tensor([8], "float32"))
    weights = [relax.Var(f"w{i}", R.Tensor([12, 8], of)) for i in range(uses)]
    with builder.function("forward", [x, scale, *weights]):
        with builder.dataflow():
            normal = builder.emit(relax.op.nn.rms_norm(x, scale, axes=[-1], epsilon=1e-5))
            results = []
            for weight in weights:
                op = GatedLinear(normal, weight, None, "silu") if gated else Linear(normal, weight, None, None, "")
                results.append(builder.emit(op.emit(R.Tensor([n, 6 if gated else 12], "float32"))))
            result = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(result)
    return builder.get()["forward"]


def layers(mod: tvm.IRModule) -> list[Linear | GatedLinear]:
    values = [binding.value for block in mod["forward"].body.blocks for binding in block.bindings]
    return [op for value in values if (op := Linear.match(value) or GatedLinear.match(value)) is not None]


def test_moves_in() -> None:
    for gated in (False, True):
        mod = apply(fuse_norm(), function(1, gated=gated))
        [layer] = layers(mod)
        x, scale, _ = mod["forward"].params
        assert layer.x.same_as(x) and layer.norm is not None and layer.norm.same_as(scale)
        assert abs(layer.epsilon - 1e-5) < 1e-12
        assert "rms_norm" not in mod.script()


def test_stays_where_others_read_it() -> None:
    stays(fuse_norm(), function(2))
