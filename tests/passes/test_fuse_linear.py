from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.fuse_linear import fuse_linear
from tests.passes.harness import becomes, stays


@R.function
def with_bias(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), bias: R.Tensor((32,), "float32")):
    n = T.int64()
    with R.dataflow():
        out = R.call_dps_packed("cupola.linear", (x, weight, bias, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
        R.output(out)
    return out


def test_a_product_with_a_transposed_weight_and_a_bias() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), bias: R.Tensor((32,), "float32")):
        with R.dataflow():
            out = R.add(R.matmul(x, R.permute_dims(weight)), bias)
            R.output(out)
        return out

    @R.function
    def commuted(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), bias: R.Tensor((32,), "float32")):
        with R.dataflow():
            out = R.add(bias, R.matmul(x, R.permute_dims(weight, [1, 0])))
            R.output(out)
        return out

    becomes(fuse_linear(), before, with_bias)
    becomes(fuse_linear(), commuted, with_bias)


def test_a_weight_that_is_not_transposed_gets_transposed() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64, 64), "float32")):
        with R.dataflow():
            out = R.matmul(x, R.permute_dims(weight, [0, 1]))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            kept = R.permute_dims(weight, [0, 1])
            turned = R.permute_dims(kept)
            out = R.call_dps_packed("cupola.linear", (x, turned, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            R.output(out)
        return out

    becomes(fuse_linear(), before, expected)


def test_a_product_that_is_used_again_keeps_its_addition() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), bias: R.Tensor((32,), "float32")):
        with R.dataflow():
            product = R.matmul(x, R.permute_dims(weight))
            out = R.multiply(product, R.add(product, bias))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), bias: R.Tensor((32,), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, weight, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            biased = R.add(product, bias)
            out = R.multiply(product, biased)
            R.output(out)
        return out

    becomes(fuse_linear(), before, expected)


def test_what_is_no_bias_is_added_apart() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), scalar: R.Tensor((1,), "float32")):
        with R.dataflow():
            out = R.add(R.matmul(x, R.permute_dims(weight)), scalar)
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((32, 64), "float32"), scalar: R.Tensor((1,), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, weight, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.add(product, scalar)
            R.output(out)
        return out

    becomes(fuse_linear(), before, expected)


def test_products_of_tensors_without_a_known_shape_or_of_more_axes_stay() -> None:
    @R.function
    def dynamic(x: R.Tensor(("n", 64), "float32"), y: R.Tensor((64, "m"), "float32")):
        with R.dataflow():
            out = R.matmul(x, y)
            R.output(out)
        return out

    @R.function
    def batched(x: R.Tensor((2, "n", 64), "float32"), y: R.Tensor((2, 64, 8), "float32")):
        with R.dataflow():
            out = R.matmul(x, y)
            R.output(out)
        return out

    stays(fuse_linear(), dynamic)
    stays(fuse_linear(), batched)


def test_rows_within_more_axes() -> None:
    @R.function
    def before(x: R.Tensor((1, "n", 64), "float32"), w: R.Tensor((32, 64), "float32")):
        with R.dataflow():
            out = R.matmul(x, R.permute_dims(w))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor((1, "n", 64), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            rows = R.reshape(x, (n, 64))
            product = R.call_dps_packed("cupola.linear", (rows, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.reshape(product, (1, n, 32))
            R.output(out)
        return out

    becomes(fuse_linear(), before, expected)
