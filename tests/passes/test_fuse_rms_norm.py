from __future__ import annotations

from tvm.script import relax as R

from cupola.passes.fuse_rms_norm import fuse_rms_norm
from tests.passes.harness import becomes, same_numbers, stays


@R.function
def spelled_out(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
    with R.dataflow():
        root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[-1], keepdims=True), R.const(1.0, "float32")))
        out = R.multiply(weight, R.multiply(x, root))
        R.output(out)
    return out


@R.function
def commuted(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
    with R.dataflow():
        root = R.rsqrt(R.add(R.const(1.0, "float32"), R.mean(R.multiply(x, x), axis=[1], keepdims=True)))
        out = R.multiply(R.multiply(root, x), weight)
        R.output(out)
    return out


@R.function
def recognized(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
    with R.dataflow():
        out = R.nn.rms_norm(x, weight, axes=[-1], epsilon=1.0)
        R.output(out)
    return out


def test_spelled_out_norms_are_recognized() -> None:
    becomes(fuse_rms_norm(), spelled_out, recognized)
    becomes(fuse_rms_norm(), commuted, recognized)


def test_the_weight_may_be_an_expression() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[-1], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(R.multiply(x, root), R.add(weight, R.const(1.0, "float32")))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            shifted = R.add(weight, R.const(1.0, "float32"))
            out = R.nn.rms_norm(x, shifted, axes=[-1], epsilon=1.0)
            R.output(out)
        return out

    becomes(fuse_rms_norm(), before, expected)


def test_numbers_stay() -> None:
    same_numbers(fuse_rms_norm(), spelled_out, (3, 64), (64,))


def test_a_mean_over_another_axis_stays() -> None:
    @R.function
    def before(x: R.Tensor((64, 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[0], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(weight, R.multiply(x, root))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)


def test_a_mean_without_its_axis_stays() -> None:
    @R.function
    def before(x: R.Tensor((64, 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[-1]), R.const(1.0, "float32")))
            out = R.multiply(weight, R.multiply(x, root))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)


def test_another_power_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(3.0, "float32")), axis=[-1], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(weight, R.multiply(x, root))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)


def test_the_mean_of_another_tensor_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), y: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.multiply(x, y), axis=[-1], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(weight, R.multiply(x, root))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)


def test_one_weight_for_all_columns_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((1,), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[-1], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(weight, R.multiply(x, root))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)


def test_a_last_axis_of_unknown_size_stays() -> None:
    @R.function
    def before(x: R.Tensor((8, "n"), "float32"), weight: R.Tensor((64,), "float32"), y: R.Tensor(("n",), "float32")):
        with R.dataflow():
            root = R.rsqrt(R.add(R.mean(R.power(x, R.const(2.0, "float32")), axis=[-1], keepdims=True), R.const(1.0, "float32")))
            out = R.multiply(R.multiply(x, root), R.const(2.0, "float32"))
            R.output(out)
        return out

    stays(fuse_rms_norm(), before)
