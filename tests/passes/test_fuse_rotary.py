from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.fuse_rotary import fuse_rotary
from tests.passes.harness import apply, becomes, stays


@R.function
def rotated(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
    with R.dataflow():
        first = R.strided_slice(x, axes=[2], begin=[0], end=[8])
        second = R.strided_slice(x, axes=[2], begin=[8], end=[16])
        turned = R.concat((R.negative(second), first), axis=-1)
        out = R.add(R.multiply(x, cos), R.multiply(turned, sin))
        R.output(out)
    return out


@R.function
def recognized(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
    n = T.int64()
    with R.dataflow():
        rows = R.permute_dims(x, [1, 0, 2])
        cosines = R.reshape(cos, (n, 16))
        sines = R.reshape(sin, (n, 16))
        flat = R.call_dps_packed("cupola.rotary", (rows, cosines, sines), out_ty=R.Tensor((n, 4, 16), dtype="float32"))
        out = R.permute_dims(flat, [1, 0, 2])
        R.output(out)
    return out


def test_rotated_halves_are_recognized() -> None:
    becomes(fuse_rotary(), rotated, recognized)


def test_rotated_pairs_are_recognized() -> None:
    @R.function
    def pairs(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
        n = T.int64()
        with R.dataflow():
            even = R.strided_slice(x, axes=[2], begin=[0], end=[16], strides=[2])
            odd = R.strided_slice(x, axes=[2], begin=[1], end=[16], strides=[2])
            turned = R.reshape(R.stack((R.negative(odd), even), axis=-1), (4, n, 16))
            out = R.add(R.multiply(x, cos), R.multiply(turned, sin))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
        n = T.int64()
        with R.dataflow():
            rows = R.permute_dims(x, [1, 0, 2])
            cosines = R.reshape(cos, (n, 16))
            sines = R.reshape(sin, (n, 16))
            flat = R.call_dps_packed("cupola.rotary", (rows, cosines, sines, 1), out_ty=R.Tensor((n, 4, 16), dtype="float32"))
            out = R.permute_dims(flat, [1, 0, 2])
            R.output(out)
        return out

    becomes(fuse_rotary(), pairs, expected)


def test_in_any_order() -> None:
    @R.function
    def commuted(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
        with R.dataflow():
            first = R.strided_slice(x, axes=[2], begin=[0], end=[8], strides=[1])
            second = R.strided_slice(x, axes=[2], begin=[8], end=[9223372036854775807], strides=[1])
            turned = R.concat((R.negative(second), first), axis=2)
            out = R.add(R.multiply(sin, turned), R.multiply(cos, x))
            R.output(out)
        return out

    becomes(fuse_rotary(), commuted, recognized)


def rotation(negated: int = 0, begin: int = 8, end: int = 16, axis: int = 2, total: str = "add", heads: int = 4) -> relax.Function:
    """As `rotated`, with one thing or another changed."""
    n, builder = tvm.tirx.Var("n", "int64"), relax.BlockBuilder()
    sizes = {"x": heads, "cos": 1, "sin": 1}
    x, cos, sin = (relax.Var(name, relax.TensorType([size, n, 16], "float32")) for name, size in sizes.items())
    with builder.function("forward", [x, cos, sin]):
        with builder.dataflow():
            halves = [
                builder.emit(relax.op.strided_slice(x, [axis], [begin], [end])),
                builder.emit(relax.op.strided_slice(x, [axis], [0], [begin])),
            ]
            if negated >= 0:
                halves[negated] = builder.emit(relax.op.negative(halves[negated]))
            turned = builder.emit(relax.op.multiply(builder.emit(relax.op.concat(halves, axis)), sin))
            straight = builder.emit(relax.op.multiply(x, cos))
            out = builder.emit_output(getattr(relax.op, total)(straight, turned))
        builder.emit_func_output(out)
    return builder.get()["forward"]


@pytest.mark.parametrize(
    "changes",
    [{"negated": 1}, {"negated": -1}, {"begin": 7}, {"axis": 0, "heads": 16}, {"total": "subtract"}],
    ids=["the other half is negated", "nothing is negated", "unequal halves", "halves of the heads", "a difference"],
)
def test_near_misses_stay(changes: dict[str, object]) -> None:
    stays(fuse_rotary(), rotation(**changes))


def test_the_near_misses_are_near() -> None:
    names = {binding.value.op.name for binding in apply(fuse_rotary(), rotation())["forward"].body.blocks[0].bindings}
    assert names == {"relax.permute_dims", "relax.reshape", "relax.call_dps_packed"}


def test_every_second_column_stays() -> None:
    @R.function
    def before(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, "n", 16), "float32"), sin: R.Tensor((1, "n", 16), "float32")):
        with R.dataflow():
            even = R.strided_slice(x, axes=[2], begin=[0], end=[16], strides=[2])
            second = R.strided_slice(x, axes=[2], begin=[8], end=[16])
            turned = R.concat((R.negative(second), even), axis=-1)
            out = R.add(R.multiply(x, cos), R.multiply(turned, sin))
            R.output(out)
        return out

    stays(fuse_rotary(), before)


def test_one_angle_for_all_tokens_stays() -> None:
    @R.function
    def before(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((1, 1, 16), "float32"), sin: R.Tensor((1, 1, 16), "float32")):
        with R.dataflow():
            first = R.strided_slice(x, axes=[2], begin=[0], end=[8])
            second = R.strided_slice(x, axes=[2], begin=[8], end=[16])
            turned = R.concat((R.negative(second), first), axis=-1)
            out = R.add(R.multiply(x, cos), R.multiply(turned, sin))
            R.output(out)
        return out

    stays(fuse_rotary(), before)


def test_angles_of_their_own_for_every_head_stay() -> None:
    @R.function
    def before(x: R.Tensor((4, "n", 16), "float32"), cos: R.Tensor((4, "n", 16), "float32"), sin: R.Tensor((4, "n", 16), "float32")):
        with R.dataflow():
            first = R.strided_slice(x, axes=[2], begin=[0], end=[8])
            second = R.strided_slice(x, axes=[2], begin=[8], end=[16])
            turned = R.concat((R.negative(second), first), axis=-1)
            out = R.add(R.multiply(x, cos), R.multiply(turned, sin))
            R.output(out)
        return out

    stays(fuse_rotary(), before)
