from __future__ import annotations

import pytest
from tvm import relax, tirx
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.lower_ops import _Kernels, lower_ops
from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target
from cupola.targets.ops import Linear
from tests.passes.harness import apply, stays

SPEC = DeviceSpec("toy", "cpu", "none", "x86_64", ())


@R.function
def before(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((32, 64), "float32")):
    n = T.int64()
    with R.dataflow():
        a = R.nn.relu(x)
        out = R.call_dps_packed("cupola.linear", (a, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
        R.output(out)
    return out


def matmul(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """A kernel that is Relax's own."""
    linear = Linear.match(call)
    return relax.op.matmul(linear.x, builder.emit(relax.op.permute_dims(linear.weight))) if linear else None


def never(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    raise AssertionError("an earlier rule takes it")


def toy(*rules) -> Target:
    return Target(SPEC, None, kernels=tuple(rules))


def names(mod) -> list[str]:
    return [binding.value.op.name for block in mod["forward"].body.blocks for binding in block.bindings]


def test_the_first_rule_that_matches_wins() -> None:
    others = lambda call, builder: never(call, builder) if Linear.match(call) else None  # noqa: E731
    assert names(apply(lower_ops(toy(matmul, others)), before)) == ["relax.nn.relu", "relax.permute_dims", "relax.matmul"]


def test_rules_may_lower_relax_operations_too() -> None:
    relu = lambda call, builder: relax.op.maximum(call.args[0], relax.const(0.0)) if call.op.name == "relax.nn.relu" else None  # noqa: E731
    assert names(apply(lower_ops(toy(relu, matmul)), before))[0] == "relax.maximum"


def test_a_generic_rule_stands_last() -> None:
    assert names(apply(lower_ops(toy()), before)) == ["relax.nn.relu", "relax.call_tir"]
    assert names(apply(lower_ops(toy(matmul)), before))[-1] == "relax.matmul"


def test_an_operation_that_no_rule_takes_is_named() -> None:
    @R.function
    def maxima(x: R.Tensor(("n", 64), "float32")):
        n = T.int64()
        with R.dataflow():
            out = R.call_dps_packed("cupola.block_maxima", (x,), out_ty=R.Tensor((n, 1), dtype="float32"))
            R.output(out)
        return out

    with pytest.raises(UnsupportedError, match=r"target toy: has no kernel for cupola\.block_maxima"):
        apply(lower_ops(toy()), maxima)


def test_relax_operations_that_no_rule_takes_stay() -> None:
    @R.function
    def plain(x: R.Tensor(("n", 64), "float32")):
        with R.dataflow():
            out = R.nn.relu(x)
            R.output(out)
        return out

    stays(lower_ops(toy()), plain)
    assert not any(isinstance(func, tirx.PrimFunc) for _, func in apply(lower_ops(toy()), plain).functions_items())


def test_a_kernel_of_many_layers_is_given_to_the_module_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving it compares it with all others there, which takes longer for a large one than a layer's other passes."""
    builder, given = relax.BlockBuilder(), []
    monkeypatch.setattr(relax.BlockBuilder, "add_func", lambda self, func, name: given.append(name) or len(given))
    kernels, (one, other) = _Kernels(builder), (tirx.PrimFunc([], tirx.Evaluate(0)), tirx.PrimFunc([], tirx.Evaluate(1)))
    assert [kernels.add_func(func, "name") for func in (one, one, other, one)] == [1, 1, 2, 1]
    assert given == ["name", "name"]
