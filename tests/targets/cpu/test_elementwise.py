"""Operations without a kernel rule: legalized and fused by TVM, scheduled here, executed against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from cupola.compiler.native_function import compile_function
from cupola.targets.registry import get_target
from tests.targets.harness import DTYPES, RUNNABLE, Input, size

N = size("n")
A, B = Input("a", (N, 64)), Input("b", (N, 64))
CASES = {
    "fused": ([A, B], lambda bb, a, b: op.add(bb.emit(op.multiply(a, b)), a), lambda a, b: a * b + a),
    "slice": ([A], lambda _, a: op.strided_slice(a, [1], [32], [64]), lambda a: a[:, 32:]),
    "odd": ([Input("a", (N, 7))], lambda _, a: op.abs(a), abs),
    "softmax": ([A], lambda _, a: op.nn.softmax(a), lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)),
    "sum": ([A], lambda _, a: op.sum(a, [1]), lambda a: a.sum(1)),
    "scalar": ([Input("a", (40,))], lambda _, a: op.sum(a), lambda a: a.sum()),
    "argmax": ([A], lambda _, a: op.argmax(a, 1), lambda a: a.argmax(1)),
    "gather": ([A, Input("r", (size("r"),), "int32")], lambda _, a, r: op.take(a, r, axis=0, mode="clip"), lambda a, r: a[r]),
    "matmul": ([A, Input("c", (64, 32))], lambda bb, a, c: op.tanh(bb.emit(op.matmul(a, c))), lambda a, c: np.tanh(a @ c)),
    "silu": ([A], lambda _, a: op.nn.silu(a), lambda a: a / (1 + np.exp(-a))),
    "bfloat16": ([A], lambda _, a: op.astype(a, "bfloat16"), lambda a: a.astype(DTYPES["bfloat16"])),
    "cumsum": ([A], lambda _, a: op.cumsum(a, 1), lambda a: a.cumsum(1)),
}


def scheduled(target, inputs, make):
    builder = relax.BlockBuilder()
    variables = [relax.Var(i.name, relax.TensorType(i.shape, i.dtype)) for i in inputs]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(make(builder, *variables))
        builder.emit_func_output(result)
    fuse = [
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    with target.tvm:
        return tvm.transform.Sequential([*fuse, *target.schedules])(builder.get())


@pytest.mark.by_turns
@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("case", CASES)
def test_scheduled(isa, case):
    inputs, make, reference = CASES[case]
    target, random = get_target(f"cpu:{isa}"), np.random.default_rng(0)
    function = compile_function(scheduled(target, inputs, make), target, "main")
    for n in (1, 9, 700):
        shapes = [[s if isinstance(s, int) else {"n": n, "r": 5}[s.name] for s in i.shape] for i in inputs]
        arrays = [
            random.integers(0, n, shape).astype("int32") if i.dtype == "int32" else random.standard_normal(shape).astype("float32")
            for i, shape in zip(inputs, shapes, strict=True)
        ]
        actual = function(*arrays)[0]
        np.testing.assert_allclose(actual.astype("float64"), reference(*arrays).astype("float64"), atol=2e-5, rtol=1e-5)


def test_small_and_large_take_different_loops():
    target = get_target("cpu:generic")
    [func] = [f for _, f in scheduled(target, *CASES["fused"][:2]).functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    script = func.script()
    assert script.count("T.parallel") == 1
    assert script.count("T.vectorized") == 2
    assert func.attrs["tirx.is_scheduled"]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("make", "reference"), [(op.exp, np.exp), (op.sigmoid, lambda x: 1 / (1 + np.exp(-x))), (op.tanh, np.tanh)])
def test_exponentials_of_any_number(isa, make, reference):
    """Vectors of them are arithmetic: also at and beyond the ends, of infinities and NaN."""
    target, random = get_target(f"cpu:{isa}"), np.random.default_rng(0)
    function = compile_function(scheduled(target, [A], lambda _, a: make(a)), target, "main")
    ends = [np.inf, -np.inf, np.nan, 0.0, -0.0, 88.72, 88.73, -87.33, -87.34, -104.0, 1e30, -1e30, 1e-30, 88.4]
    x = np.concatenate([np.array(ends, "float32"), random.uniform(-90, 90, 64 * 40 - len(ends)).astype("float32")]).reshape(-1, 64)
    with np.errstate(over="ignore"):
        expected = reference(x.astype("float64")).astype("float32")
    np.testing.assert_allclose(function(x)[0], expected, rtol=5e-7, atol=2e-38 if make is not op.tanh else 2e-7)
