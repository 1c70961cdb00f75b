from __future__ import annotations

import pytest
from tvm.script import from_source
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.fuse_epilogue import ACTIVATION_OF, fuse_epilogue
from cupola.targets import ops
from tests.passes.harness import apply, becomes, stays


def test_a_residual_on_either_side() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), r: R.Tensor(("n", 32), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.add(r, product)
            R.output(out)
        return out

    @R.function
    def commuted(x: R.Tensor(("n", 64), "float32"), r: R.Tensor(("n", 32), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.add(product, r)
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), r: R.Tensor(("n", 32), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            out = R.call_dps_packed("cupola.linear", (x, w, 0, r, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    becomes(fuse_epilogue(), before, expected)
    becomes(fuse_epilogue(), commuted, expected)


@R.function
def activated(
    x: R.Tensor(("n", 64), "float32"), w: R.Tensor((32, 64), "float32"), b: R.Tensor((32,), "float32"), r: R.Tensor(("n", 32), "float32")
):
    n = T.int64()
    with R.dataflow():
        product = R.call_dps_packed("cupola.linear", (x, w, b, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
        out = R.add(r, R.nn.relu(product))
        R.output(out)
    return out


def test_an_activation_before_a_residual() -> None:
    @R.function
    def expected(
        x: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        r: R.Tensor(("n", 32), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            out = R.call_dps_packed("cupola.linear", (x, w, b, r, R.str("relu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    becomes(fuse_epilogue(), activated, expected)


@pytest.mark.parametrize("name", ACTIVATION_OF)
def test_every_activation(name: str) -> None:
    text = activated.script().replace("R.nn.relu", f"R.{name}")
    linear = ops.Linear.match(apply(fuse_epilogue(), from_source(text))["forward"].body.blocks[0].bindings[0].value)
    assert linear is not None and linear.activation == ACTIVATION_OF[name] in ops.ACTIVATIONS


def test_an_activation_after_a_residual_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), r: R.Tensor(("n", 32), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, r, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.nn.silu(product)
            R.output(out)
        return out

    stays(fuse_epilogue(), before)


def test_a_second_activation_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.nn.relu(product)
            R.output(out)
        return out

    stays(fuse_epilogue(), before)


def test_a_product_that_is_used_twice_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((32, 64), "float32"), r: R.Tensor(("n", 32), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            activated = R.nn.silu(product)
            total = R.add(product, r)
            out = R.multiply(activated, total)
            R.output(out)
        return out

    stays(fuse_epilogue(), before)


def test_a_summand_of_another_shape_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((32, 64), "float32"), r: R.Tensor((1, 32), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.add(product, r)
            R.output(out)
        return out

    stays(fuse_epilogue(), before)
