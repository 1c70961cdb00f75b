"""Threads for what no rule wrote: operations that TVM takes apart into stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax

from cupola.compiler.native_function import compile_function
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target
from cupola.targets.registry import get_target

WIDTH, N = 48, tvm.tirx.Var("n", "int64")


def scheduled(make: Callable[[relax.Var], relax.Expr], shape: tuple[int | tvm.tirx.Var, ...], target: Target) -> tvm.IRModule:
    """A module whose `forward` is one fused kernel over x of that shape."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("forward", [x]):
        with builder.dataflow():
            result = builder.emit_output(make(x))
        builder.emit_func_output(result)
    passes = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(), relax.transform.FuseTIR()]
    return tvm.transform.Sequential([*passes, *target.schedules])(builder.get())


@pytest.mark.parametrize("middle", [(), (3,)])
@pytest.mark.parametrize("name", ["softgpu", "softmetal"])
def test_a_sum_stays_in_the_thread_whose_row_waits_for_it(name: str, middle: tuple[int, ...]) -> None:
    target = get_target(name)
    mod = scheduled(lambda x: relax.op.subtract(x, relax.op.mean(x, axis=-1, keepdims=True)), (N, *middle, WIDTH), target)
    assert len([f for f in mod.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]) == 1
    x = np.random.default_rng(0).standard_normal((37, *middle, WIDTH), "float32")
    (found,) = compile_function(mod, target)(x)
    np.testing.assert_allclose(found, x - x.astype("float64").mean(-1, keepdims=True), atol=1e-6)


def test_more_than_a_thread_can_keep_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"a stage hands \w+ \[.*n.*\] to another one, more than a thread can keep"):
        scheduled(lambda x: relax.op.subtract(x, relax.op.mean(x, axis=0, keepdims=True)), (WIDTH, N), get_target("softgpu"))
