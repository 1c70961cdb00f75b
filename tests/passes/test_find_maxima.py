"""The result gets its largest numbers by blocks beside it."""

from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.find_maxima import find_maxima
from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from tests.passes.harness import becomes

assert MAXIMA_BLOCK == 64


@R.function
def before(x: R.Tensor(("r", 8), "float32"), w: R.Tensor((8, 300), "float32")):
    with R.dataflow():
        y = R.nn.relu(x)
        logits = R.matmul(y, w)
        R.output(logits)
    return logits


@R.function
def after(x: R.Tensor(("r", 8), "float32"), w: R.Tensor((8, 300), "float32")):
    r = T.int64()
    R.func_attr({"results": ["logits", "maxima"]})
    with R.dataflow():
        y = R.nn.relu(x)
        logits = R.matmul(y, w)
        maxima = R.call_dps_packed("cupola.block_maxima", (logits,), out_ty=R.Tensor((r, 5), dtype="float32"))
        R.output(logits, maxima)
    return (logits, maxima)


def test_the_result_is_a_pair() -> None:
    becomes(find_maxima(), before, after)
