"""The input of the vocabulary projection becomes a result, and a model without one is refused."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from cupola.passes.give_hidden import give_hidden
from cupola.passes.rewrite import results_of
from cupola.runtime.errors import UnsupportedError
from cupola.targets.ops import Linear
from tests.passes.harness import apply


def model(*, projects: bool = True) -> relax.Function:
    rows = tvm.tirx.Var("r", "int64")
    x, weight = relax.Var("x", R.Tensor([rows, 8], "float32")), relax.Var("weight", R.Tensor([30, 8], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("forward", [x, weight]):
        with builder.dataflow():
            hidden = builder.emit(relax.op.nn.relu(x))
            logits = builder.emit(Linear(hidden, weight, None, None, "").emit(R.Tensor([rows, 30], "float32"))) if projects else hidden
            capped = builder.emit_output(relax.op.tanh(logits))
        builder.emit_func_output(capped)
    return builder.get()["forward"]


def test_the_hidden_state_is_a_result() -> None:
    func = apply(give_hidden(), model())["forward"]
    results = results_of(func)
    assert list(results) == ["logits", "hidden"]
    assert [int(result.ty.shape[1]) for result in results.values()] == [30, 8]


def test_without_a_projection_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no linear layer"):
        apply(give_hidden(), model(projects=False))
