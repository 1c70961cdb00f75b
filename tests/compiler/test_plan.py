"""Plans are read off functions whose memory is planned; nothing is compiled here."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax, tirx
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.compiler.build import plan_memory, signature_of
from cupola.compiler.native_source import forward_source
from cupola.compiler.plan import extract_plan, plan_of_kernels
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.plan import Place, Plan
from cupola.runtime.artifact.plan_check import check_plan
from cupola.runtime.errors import UnsupportedError
from cupola.targets.native.interface import plain_interface
from cupola.targets.native.sizes import size_of


@T.prim_func(private=True, s_tir=True)
def kernel(x_: T.handle, layer: T.int64, rows_: T.handle, out_: T.handle):
    n, r = T.int64(), T.int64()
    x = T.match_buffer(x_, (n, 8), "float32")
    rows = T.match_buffer(rows_, (r,), "int32")
    out = T.match_buffer(out_, (r, 8), "float32")
    for i, j in T.grid(r, 8):
        with T.sblock("rows"):
            v, w = T.axis.remap("SS", [i, j])
            out[v, w] = x[rows[v], w] * T.Cast("float32", layer)


def planned(func: relax.Function, **kernels: tirx.PrimFunc) -> IRModule:
    """A module of `func`, whose memory is planned, and its kernels."""
    mod = IRModule({"forward": func.with_attr("num_input", len(func.params)), **kernels})
    return plan_memory(relax.transform.LegalizeOps()(mod))


def plan_of(mod: IRModule) -> Plan:
    plan = extract_plan(mod).plan
    check_plan(plan, signature_of(mod["forward"], "forward", []), "file")
    return plan


@R.function
def straight(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
    with R.dataflow():
        a = R.exp(x)
        b = R.sin(a)
        c = R.cos(b)
        d = R.take(c, rows, axis=0, mode="clip")
        e = R.multiply(d, R.const([1, 2, 3, 4, 5, 6, 7, 8], "float32"))
        f = R.exp(e)
        R.output(f)
    return f


def test_a_plan_says_what_is_called_on_what() -> None:
    mod = planned(straight)
    plan = plan_of(mod)
    assert plan.dims == ("n", "r")
    assert [call.kernel for call in plan.calls] == ["tir_exp", "tir_sin", "tir_cos", "take", "multiply", "tir_exp"]
    exp, sin, cos, take, multiply, last = plan.calls
    assert exp.pointers[0] == Place("input", 0) and sin.pointers[0] == exp.pointers[1] == cos.pointers[1]
    assert take.pointers[1] == Place("input", 1) and set(take.sizes) == {"n", "r"}
    assert multiply.pointers[1] == Place("constant", 0)
    assert last.pointers[1] == Place("input", 2)  # the memory that the caller brings for the result


def test_buffers_live_from_their_first_use_to_their_last() -> None:
    plan = plan_of(planned(straight))
    for i, buffer in enumerate(plan.buffers):
        uses = [number for number, call in enumerate(plan.calls) if Place("buffer", i) in call.pointers]
        assert (buffer.first, buffer.last) == (uses[0], uses[-1])
    room = {"n": 5, "r": 3}
    starts, end = plan.layout(room)
    assert end == sum(-(-evaluate(size, room) // 64) * 64 for size in plan.storages) and list(starts) == sorted(starts)


def test_numbers_and_sizes_come_after_pointers() -> None:
    builder, n, r = relax.BlockBuilder(), tirx.Var("n", "int64"), tirx.Var("r", "int64")
    types = {"x": ([n, 8], "float32"), "rows": ([r], "int32"), "out": ([r, 8], "float32")}
    x, rows, out = (relax.Var(name, relax.TensorType(*type_)) for name, type_ in types.items())
    with builder.function("forward", [x, rows, out]):
        builder.emit(relax.Call(builder.add_func(kernel, "kernel"), [x, relax.prim_value(tirx.IntImm("int64", 7)), rows, out]))
        builder.emit_func_output(relax.prim_value(0))
    plan = plan_of(builder.get())
    assert plan.calls[0].pointers == (Place("input", 0), Place("input", 1), Place("input", 2))
    assert (plan.calls[0].numbers, plan.calls[0].sizes) == ((7,), ("n", "r"))
    described = plan.kernel("kernel")
    assert [tensor.name for tensor in described.pointers] == ["x", "rows", "out"] and described.numbers == ("int64",)
    code = forward_source(plan, (), "code_")
    assert "int32_t code_kernel(void *, void *, void *, int64_t, int64_t, int64_t);" in code
    assert "code_kernel(inputs[0], inputs[1], inputs[2], 7, size_n, size_r)" in code


def test_the_interface_of_a_kernel_is_its_pointers_numbers_and_sizes() -> None:
    opaque = [tvm.s_tir.transform.ConvertBlocksToOpaque(), tvm.s_tir.transform.LowerOpaqueBlock()]
    lowered = tvm.transform.Sequential([*opaque, plain_interface()])(IRModule({"kernel": kernel}))
    [func] = lowered.functions.values()
    assert str(func.attrs["global_symbol"]) == "cupola_code_kernel" and str(func.ret_type) == "int32"
    assert [str(param.ty) for param in func.params[3:]] == ["int64"] * 3


@R.function
def views(x: R.Tensor(("n", 8), "float32")):
    n = T.int64()
    with R.dataflow():
        a = R.exp(x)
        b = R.reshape(a, R.shape([n, 2, 4]))
        c = R.permute_dims(b, [1, 0, 2])
        R.output(c)
    return c


def test_a_view_is_the_same_place_under_another_shape() -> None:
    mod = relax.transform.RewriteDataflowReshape()(relax.transform.LegalizeOps()(IRModule({"forward": views.with_attr("num_input", 1)})))
    plan = plan_of(plan_memory(mod))
    assert [call.kernel for call in plan.calls] == ["tir_exp", "transpose"]
    assert plan.calls[1].pointers[0] == plan.calls[0].pointers[1] and plan.buffers[0].shape == ("n", 8)


@R.function
def in_place(x: R.Tensor(("n", 8), "float32")):
    with R.dataflow():
        R.output()
    return x


def test_an_input_may_be_what_a_function_returns() -> None:
    assert extract_plan(planned(in_place)).returned == (0,)


@R.function
def branches(x: R.Tensor(("n", 8), "float32"), flag: R.Tensor((), "bool")):
    if flag:  # noqa: SIM108  TVMScript
        y = R.exp(x)
    else:
        y = R.sin(x)
    return y


def test_what_is_no_straight_line_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="forward holds If, and is no straight line of kernel calls"):
        extract_plan(IRModule({"forward": branches}))
    with pytest.raises(UnsupportedError, match="forward holds relax.exp"):
        extract_plan(plan_memory(IRModule({"forward": straight.with_attr("num_input", 2)})))


def test_sizes_are_written_plainly() -> None:
    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    assert size_of(tirx.IntImm("int64", 7)) == 7
    for size, text, value in (
        (n, "n", 29),
        (n * 4 + m, "(n * 4) + m", 119),
        ((n + 15) // 16 * 16, "((n + 15) // 16) * 16", 32),
        (n % 8, "n - n // 8 * 8", 5),
    ):
        assert size_of(size) == text and evaluate(text, {"n": 29, "m": 3}) == value
    assert size_of(n + 1, {n: "rows"}) == "rows + 1"
    with pytest.raises(UnsupportedError, match="can't be written into a plan"):
        size_of(tirx.max(n, m))


def test_constants_are_bytes_of_the_library() -> None:
    extracted = extract_plan(planned(straight))
    [values] = extracted.constants
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and extracted.plan.constants[0].shape == (8,)
    code = forward_source(extracted.plan, (np.array([1, 258], "int16"),), "code_")
    assert 'char constant_0[5] =\n  "\\001\\000\\002\\001";' in code


def test_a_library_may_have_kernels_alone() -> None:
    plan = plan_of_kernels(IRModule({"kernel": kernel})).plan
    assert [k.name for k in plan.kernels] == ["kernel"] and plan.calls == ()
