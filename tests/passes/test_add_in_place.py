from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from cupola.passes.add_in_place import add_in_place
from cupola.targets.ops import Linear
from tests.passes.harness import apply, stays

SIZE = 8


def function(*, stream: str = "own", later: bool = False, as_x: bool = False, dtype: str = "float32") -> relax.Function:
    """A residual stream, whatever it is, and a layer that adds to it; perhaps somebody reads the stream later."""
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    rows = R.Tensor([n, SIZE], "float32")
    x, weight = relax.Var("x", rows), relax.Var("weight", R.Tensor([SIZE, SIZE], "float32"))
    with builder.function("forward", [x, weight]):
        with builder.dataflow():
            own = builder.emit(Linear(x, weight, None, None, "").emit(rows))
            residual = {"own": own, "argument": x, "view": builder.emit(relax.op.reshape(own, (n, SIZE)))}[stream]
            read = residual if as_x else builder.emit(Linear(own, weight, None, None, "").emit(rows))
            added = builder.emit(Linear(read, weight, None, residual, "").emit(R.Tensor([n, SIZE], dtype)))
            last = builder.emit(Linear(added, weight, None, residual if later else None, "").emit(rows))
            out = builder.emit_output(last)
        builder.emit_func_output(out)
    return relax.transform.DeadCodeElimination()(tvm.IRModule({"forward": builder.get()["forward"]}))["forward"]


def layers(mod: tvm.IRModule) -> list[Linear]:
    found = (Linear.match(binding.value) for binding in mod["forward"].body.blocks[0].bindings)
    return [layer for layer in found if layer is not None]


def test_a_stream_that_nobody_reads_again() -> None:
    assert [layer.in_place for layer in layers(apply(add_in_place(), function()))] == [0, 0, 1, 0]


def test_the_last_of_two_that_add_to_a_stream() -> None:
    assert [layer.in_place for layer in layers(apply(add_in_place(), function(later=True)))] == [0, 0, 0, 1]


@pytest.mark.parametrize("what", [{"stream": "argument"}, {"stream": "view"}, {"as_x": True}, {"dtype": "bfloat16"}], ids=str)
def test_stays_where_somebody_reads_it_or_it_may_be_anothers_memory(what: dict[str, str]) -> None:
    stays(add_in_place(), function(**what))
