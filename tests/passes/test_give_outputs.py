"""Results of a planned function become parameters that it writes to."""

from __future__ import annotations

from tvm import relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.give_outputs import give_outputs
from tests.passes.harness import apply, stays


@R.function
def before(x: R.Tensor(("r", 8), "float32"), w: R.Tensor((8,), "float32")):
    r = T.int64()
    R.func_attr({"relax.force_pure": True, "num_input": 1, "results": ["logits", "maxima"]})
    a = R.builtin.alloc_tensor(R.shape([r, 4]), R.dtype("float32"), R.prim_value(0), R.str("global"))
    _ = R.call_packed("project", x, w, a, ty_args=(R.Tuple,))
    b = R.builtin.alloc_tensor(R.shape([r, 1]), R.dtype("float32"), R.prim_value(0), R.str("global"))
    _1 = R.call_packed("largest", a, b, ty_args=(R.Tuple,))
    both = (a, b)
    return both


@R.function
def a_view(x: R.Tensor(("r", 8), "float32")):
    r = T.int64()
    R.func_attr({"relax.force_pure": True, "num_input": 1})
    a = R.builtin.alloc_tensor(R.shape([r, 4]), R.dtype("float32"), R.prim_value(0), R.str("global"))
    _ = R.call_packed("project", x, a, ty_args=(R.Tuple,))
    b = R.reshape(a, R.shape([r, 2, 2]))
    return b


@R.function
def twice(x: R.Tensor(("r", 8), "float32")):
    r = T.int64()
    R.func_attr({"relax.force_pure": True, "num_input": 1, "results": ["logits", "maxima"]})
    a = R.builtin.alloc_tensor(R.shape([r, 4]), R.dtype("float32"), R.prim_value(0), R.str("global"))
    _ = R.call_packed("project", x, a, ty_args=(R.Tuple,))
    b = R.reshape(a, R.shape([r, 2, 2]))
    both = (a, b)
    return both


def test_the_caller_brings_the_memory() -> None:
    func = apply(give_outputs(), before)["forward"]
    assert [param.name for param in func.params] == ["x", "logits", "maxima", "w"]
    assert int(func.attrs["num_input"]) == 3
    x, logits, maxima, w = func.params
    calls = [binding.value for block in func.body.blocks for binding in block.bindings]
    assert [[arg.name for arg in call.args] for call in calls] == [["x", "w", "logits"], ["logits", "maxima"]]
    assert all(given.same_as(arg) for given, arg in zip((x, w, logits, logits, maxima), [a for c in calls for a in c.args], strict=True))
    assert not isinstance(func.ret_ty, relax.TupleType)


def test_a_result_that_is_a_view_is_given_under_its_own_shape() -> None:
    func = apply(give_outputs(), a_view)["forward"]
    _, logits = func.params
    assert [str(size) for size in logits.ty.shape] == ["r", "T.int64(2)", "T.int64(2)"]
    (view, reshape), (_, call) = [(binding.var, binding.value) for block in func.body.blocks for binding in block.bindings]
    assert reshape.op.name == "relax.reshape" and reshape.args[0].same_as(logits) and call.args[-1].same_as(view)
    assert [str(size) for size in view.ty.shape] == ["r", "T.int64(4)"]


def test_results_that_are_one_tensor_stay_the_functions_own() -> None:
    stays(give_outputs(), twice)
