from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.simplify import simplify
from tests.passes.harness import apply, becomes, run, same_numbers, stays


@R.function
def roundabout(x: R.Tensor(("n", 4, 16), "float32")):
    n = T.int64()
    with R.dataflow():
        same = R.multiply(R.const(1.0, "float32"), R.astype(x, "float32"))
        back = R.permute_dims(R.permute_dims(same, [1, 0, 2]), [1, 0, 2])
        flat = R.reshape(R.reshape(back, (n, 64)), (n, 2, 32))
        out = R.nn.relu(flat)
        R.output(out)
    return out


def test_what_changes_nothing_goes() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 4, 16), "float32")):
        n = T.int64()
        with R.dataflow():
            flat = R.reshape(x, R.shape([n, 2, 32]))
            out = R.nn.relu(flat)
            R.output(out)
        return out

    becomes(simplify(), roundabout, expected)


def test_numbers_stay() -> None:
    same_numbers(simplify(), roundabout, (3, 4, 16))


def test_transposes_merge() -> None:
    @R.function
    def before(x: R.Tensor((2, 3, 4), "float32")):
        with R.dataflow():
            out = R.permute_dims(R.permute_dims(x, [1, 2, 0]), [1, 2, 0])
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor((2, 3, 4), "float32")):
        with R.dataflow():
            out = R.permute_dims(x, [2, 0, 1])
            R.output(out)
        return out

    becomes(simplify(), before, expected)
    same_numbers(simplify(), before, (2, 3, 4))


def test_equal_expressions_are_computed_once() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            out = R.add(R.exp(x), R.exp(x))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            once = R.exp(x)
            out = R.add(once, once)
            R.output(out)
        return out

    becomes(simplify(), before, expected)


def test_slices_of_everything_and_empty_parts_go() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            head = R.strided_slice(x, axes=[1], begin=[0], end=[8], strides=[1])
            rest = R.strided_slice(x, axes=[1], begin=[8], end=[9223372036854775807], strides=[1])
            out = R.nn.relu(R.concat((head, rest), axis=-1))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32")):
        with R.dataflow():
            out = R.nn.relu(x)
            R.output(out)
        return out

    becomes(simplify(), before, expected)


def picks(indices: object, shape: tuple[int | tvm.tirx.Var, ...], axis: int, mode: str = "fast") -> relax.Function:
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("forward", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.take(x, relax.const(np.array(indices, "int64")), axis=axis, mode=mode))
        builder.emit_func_output(out)
    return builder.get()["forward"]


def only_call(mod: tvm.IRModule) -> relax.Call:
    (binding,) = mod["forward"].body.blocks[0].bindings
    return binding.value


def test_constant_indices_that_count_up_are_a_slice() -> None:
    for axis in (1, -1):
        before = picks([-2, -1], (3, 5), axis)
        call = only_call(apply(simplify(), before))
        assert call.op.name == "relax.strided_slice" and list(call.ty.shape) == [3, 2]
        values = np.arange(15, dtype="float32").reshape(3, 5)
        machine = relax.VirtualMachine(tvm.compile(apply(simplify(), before), target="llvm"), tvm.cpu())
        np.testing.assert_array_equal(machine["forward"](tvm.runtime.tensor(values)).numpy(), values[:, 3:])


def test_other_indices_are_clipped_and_counted_from_the_start() -> None:
    for indices, expected in (([0, 2], [0, 2]), ([-1, 0], [4, 0]), (-2, 3), ([1, 0], [1, 0])):
        call = only_call(apply(simplify(), picks(indices, (3, 5), 1)))
        assert call.op.name == "relax.take" and call.attrs.mode == "clip"
        np.testing.assert_array_equal(call.args[1].value.numpy(), expected)


def test_indices_into_an_axis_of_unknown_size_are_only_clipped() -> None:
    call = only_call(apply(simplify(), picks([0, 1], (tvm.tirx.Var("n", "int64"), 5), 0)))
    assert call.op.name == "relax.take" and call.attrs.mode == "clip"


def test_near_misses_stay() -> None:
    @R.function
    def before(x: R.Tensor(("n", 4, 16), "float32"), one: R.Tensor((1, 1, 1, 1), "float32")):
        n = T.int64()
        with R.dataflow():
            half = R.astype(x, "float16")
            doubled = R.multiply(x, R.const(2.0, "float32"))
            grown = R.multiply(x, R.const([[[[1.0]]]], "float32"))
            turned = R.permute_dims(x, [1, 0, 2])
            part = R.strided_slice(x, axes=[2], begin=[0], end=[15], strides=[1])
            flipped = R.strided_slice(x, axes=[1], begin=[3], end=[-5], strides=[-1])
            flat = R.reshape(x, (n, 64))
            wide = R.broadcast_to(x, (2, n, 4, 16))
            R.output(half, doubled, grown, turned, part, flipped, flat, wide)
        return (half, doubled, grown, turned, part, flipped, flat, wide)

    stays(simplify(), before)


def test_a_slice_of_what_was_joined_is_the_part() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), y: R.Tensor(("n", 4), "float32"), z: R.Tensor(("n", 4), "float32")):
        with R.dataflow():
            empty = R.concat((x, y), axis=1)
            first = R.strided_slice(empty, axes=[1], begin=[0], end=[8])
            filled = R.concat((first, z), axis=1)
            second = R.strided_slice(filled, axes=[-1], begin=[8], end=[12])
            across = R.strided_slice(filled, axes=[1], begin=[6], end=[10])
            out = R.add(R.multiply(second, across), z)
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32"), y: R.Tensor(("n", 4), "float32"), z: R.Tensor(("n", 4), "float32")):
        with R.dataflow():
            filled = R.concat((x, z), axis=1)
            across = R.strided_slice(filled, axes=[1], begin=[6], end=[10])
            out = R.add(R.multiply(z, across), z)
            R.output(out)
        return out

    becomes(simplify(), before, expected)


def test_rows_picked_by_zeros_are_a_slice() -> None:
    """As a model without token types looks up the embedding of the first one."""

    @R.function
    def before(table: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            out = R.take(table, R.reshape(R.astype(R.zeros((1, 1), "int64"), "int32"), (1,)), axis=0, mode="fast")
            whole = R.take(table, R.zeros((1, 1), "int64"), axis=0, mode="fast")
            sum = R.add(R.reshape(whole, (1, 8)), out)
            R.output(sum)
        return sum

    @R.function
    def expected(table: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            row = R.strided_slice(table, [0], [0], [1], assume_inbound=True)
            sum = R.add(row, row)
            R.output(sum)
        return sum

    becomes(simplify(), apply(simplify(), before)["forward"], expected)


def test_rows_gathered_entry_by_entry_are_taken() -> None:
    @R.function
    def before(positions: R.Tensor(("n",), "int32"), table: R.Tensor((32, 8), "float32")):
        n = T.int64()
        with R.dataflow():
            rows = R.tile(R.reshape(positions, (n, 1)), (1, 8))
            out = R.gather_elements(R.tile(table, (1, 1)), rows, axis=0)
            R.output(out)
        return out

    @R.function
    def expected(positions: R.Tensor(("n",), "int32"), table: R.Tensor((32, 8), "float32")):
        with R.dataflow():
            out = R.take(table, positions, axis=0, mode="clip")
            R.output(out)
        return out

    becomes(simplify(), apply(simplify(), before)["forward"], expected)
    table = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    positions = np.array([5, 31, 0], "int32")
    np.testing.assert_array_equal(run(apply(simplify(), before), positions, table), table[positions])


def test_other_gathers_stay() -> None:
    @R.function
    def columns(index: R.Tensor((32, 1), "int32"), x: R.Tensor((32, 8), "float32")):
        with R.dataflow():
            out = R.gather_elements(x, R.tile(index, (1, 8)), axis=1)
            R.output(out)
        return out

    @R.function
    def narrower(index: R.Tensor((4, 1), "int32"), x: R.Tensor((32, 8), "float32")):
        with R.dataflow():
            out = R.gather_elements(x, R.tile(index, (1, 6)), axis=0)
            R.output(out)
        return out

    @R.function
    def repeated(index: R.Tensor((2, 1), "int32"), x: R.Tensor((32, 8), "float32")):
        with R.dataflow():
            out = R.gather_elements(x, R.tile(index, (2, 8)), axis=0)
            R.output(out)
        return out

    for function in (columns, narrower, repeated):
        stays(simplify(), function)


def test_an_index_that_was_widened_is_read_as_it_was() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), index: R.Tensor(("n", 2), "int32"), w: R.Tensor((64, 8), "float32")):
        n = T.int64()
        with R.dataflow():
            wide = R.astype(index, "int64")
            scores = R.gather_elements(x, wide, axis=1)
            y = R.call_dps_packed("cupola.expert_linear", (x, wide, w, 0, 8), out_ty=R.Tensor((n, 2, 8), dtype="float32"))
            out = R.multiply(y, R.expand_dims(scores, axis=[2]))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32"), index: R.Tensor(("n", 2), "int32"), w: R.Tensor((64, 8), "float32")):
        n = T.int64()
        with R.dataflow():
            scores = R.gather_elements(x, index, axis=1)
            y = R.call_dps_packed("cupola.expert_linear", (x, index, w, 0, 8), out_ty=R.Tensor((n, 2, 8), dtype="float32"))
            out = R.multiply(y, R.expand_dims(scores, axis=[2]))
            R.output(out)
        return out

    becomes(simplify(), before, expected)
