"""The harness refuses a pass that leaves malformed IR behind, or is given some."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from tests.passes.harness import becomes, module, stays, verified


@R.function
def sound(x: R.Tensor((4,), "float32")):
    with R.dataflow():
        out = R.nn.relu(x)
        R.output(out)
    return out


def malformed() -> relax.Function:
    """A function that returns a variable without a binding."""
    type_ = relax.TensorType([4], "float32")
    return relax.Function([relax.Var("x", type_)], relax.Var("unbound", type_), type_)


def makes(func: relax.Function) -> tvm.transform.Pass:
    """A pass that replaces `forward` by `func`."""
    return tvm.transform.module_pass(lambda mod, context: module(func), opt_level=0, name="replace")


def test_the_result_of_a_pass_is_verified() -> None:
    stays(makes(sound), sound)
    with pytest.raises(ValueError, match="unbound is not defined"):
        becomes(makes(malformed()), sound, malformed())


def test_the_input_of_a_pass_is_verified() -> None:
    with pytest.raises(ValueError, match="unbound is not defined"):
        verified(makes(sound), module(malformed()))
