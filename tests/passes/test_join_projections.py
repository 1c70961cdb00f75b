from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.join_projections import join_projections
from tests.passes.harness import becomes, stays


def test_layers_of_one_input_join() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        wq: R.Tensor((64, 64), "float32"),
        wk: R.Tensor((32, 64), "float32"),
        bq: R.Tensor((64,), "float32"),
        bk: R.Tensor((32,), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            q = R.call_dps_packed("cupola.linear", (x, wq, bq, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            a = R.nn.relu(q)
            k = R.call_dps_packed("cupola.linear", (x, wk, bk, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, k)
        return (a, k)

    @R.function
    def expected(
        x: R.Tensor(("n", 64), "float32"),
        wq: R.Tensor((64, 64), "float32"),
        wk: R.Tensor((32, 64), "float32"),
        bq: R.Tensor((64,), "float32"),
        bk: R.Tensor((32,), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            weight = R.concat((wq, wk), axis=0)
            bias = R.concat((bq, bk), axis=0)
            both = R.call_dps_packed("cupola.linear", (x, weight, bias, 0, R.str("")), out_ty=R.Tensor((n, 96), dtype="float32"))
            q = R.strided_slice(both, axes=[1], begin=[0], end=[64], assume_inbound=True)
            a = R.nn.relu(q)
            k = R.strided_slice(both, axes=[1], begin=[64], end=[96], assume_inbound=True)
            R.output(a, k)
        return (a, k)

    becomes(join_projections(), before, expected)


def test_a_weight_that_two_inputs_share_joins_with_each() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        y: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((64, 64), "float32"),
        v: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            a = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            b = R.call_dps_packed("cupola.linear", (x, v, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            c = R.call_dps_packed("cupola.linear", (y, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            d = R.call_dps_packed("cupola.linear", (y, v, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, b, c, d)
        return (a, b, c, d)

    @R.function
    def expected(
        x: R.Tensor(("n", 64), "float32"),
        y: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((64, 64), "float32"),
        v: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            weight = R.concat((w, v), axis=0)
            first = R.call_dps_packed("cupola.linear", (x, weight, 0, 0, R.str("")), out_ty=R.Tensor((n, 96), dtype="float32"))
            a = R.strided_slice(first, axes=[1], begin=[0], end=[64], assume_inbound=True)
            b = R.strided_slice(first, axes=[1], begin=[64], end=[96], assume_inbound=True)
            again = R.concat((w, v), axis=0)
            second = R.call_dps_packed("cupola.linear", (y, again, 0, 0, R.str("")), out_ty=R.Tensor((n, 96), dtype="float32"))
            c = R.strided_slice(second, axes=[1], begin=[0], end=[64], assume_inbound=True)
            d = R.strided_slice(second, axes=[1], begin=[64], end=[96], assume_inbound=True)
            R.output(a, b, c, d)
        return (a, b, c, d)

    becomes(join_projections(), before, expected)


def test_near_misses_stay() -> None:
    @R.function
    def different_inputs(
        x: R.Tensor(("n", 64), "float32"),
        y: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((64, 64), "float32"),
        v: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            a = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            b = R.call_dps_packed("cupola.linear", (y, v, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, b)
        return (a, b)

    @R.function
    def one_activated(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 64), "float32"), v: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            a = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("silu")), out_ty=R.Tensor((n, 64), dtype="float32"))
            b = R.call_dps_packed("cupola.linear", (x, v, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, b)
        return (a, b)

    @R.function
    def one_bias(
        x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 64), "float32"), v: R.Tensor((32, 64), "float32"), c: R.Tensor((32,), "float32")
    ):
        n = T.int64()
        with R.dataflow():
            a = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            b = R.call_dps_packed("cupola.linear", (x, v, c, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, b)
        return (a, b)

    @R.function
    def computed_weight(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 64), "float32"), v: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            a = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            scaled = R.negative(v)
            b = R.call_dps_packed("cupola.linear", (x, scaled, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(a, b)
        return (a, b)

    for function in (different_inputs, one_activated, one_bias, computed_weight):
        stays(join_projections(), function)


def test_only_layers_of_one_kind_join() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        wq: R.Tensor((64, 64), "float32"),
        wk: R.Tensor((32, 64), "float32"),
        wv: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            q = R.call_dps_packed("cupola.linear", (x, wq, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            k = R.call_dps_packed("cupola.linear", (x, wk, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            v = R.call_dps_packed("cupola.linear", (x, wv, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(q, k, v)
        return (q, k, v)

    @R.function
    def expected(
        x: R.Tensor(("n", 64), "float32"),
        wq: R.Tensor((64, 64), "float32"),
        wk: R.Tensor((32, 64), "float32"),
        wv: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            weight = R.concat((wq, wk), axis=0)
            both = R.call_dps_packed("cupola.linear", (x, weight, 0, 0, R.str("")), out_ty=R.Tensor((n, 96), dtype="float32"))
            q = R.strided_slice(both, axes=[1], begin=[0], end=[64], assume_inbound=True)
            k = R.strided_slice(both, axes=[1], begin=[64], end=[96], assume_inbound=True)
            v = R.call_dps_packed("cupola.linear", (x, wv, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(q, k, v)
        return (q, k, v)

    becomes(join_projections(lambda weight: "other" if weight.name == "wv" else ""), before, expected)
    stays(join_projections(lambda weight: weight.name), before)
