from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.fuse_gated_linear import fuse_gated_linear
from tests.passes.harness import becomes, stays


@R.function
def joined(x: R.Tensor(("n", 64), "float32"), gate: R.Tensor((32, 64), "float32"), up: R.Tensor((32, 64), "float32")):
    n = T.int64()
    with R.dataflow():
        weight = R.concat((gate, up), axis=0)
        out = R.call_dps_packed("cupola.gated_linear", (x, weight, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
        R.output(out)
    return out


def test_gate_and_up_in_either_order() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), gate: R.Tensor((32, 64), "float32"), up: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, gate, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (x, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(R.nn.silu(g), u)
            R.output(out)
        return out

    @R.function
    def commuted(x: R.Tensor(("n", 64), "float32"), gate: R.Tensor((32, 64), "float32"), up: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            u = R.call_dps_packed("cupola.linear", (x, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            g = R.call_dps_packed("cupola.linear", (x, gate, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(u, R.nn.silu(g))
            R.output(out)
        return out

    stays(fuse_gated_linear(lambda weight: weight.name), before)  # of different kinds
    becomes(fuse_gated_linear(), before, joined)
    becomes(fuse_gated_linear(), commuted, joined)


def test_biases_join_too() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        v: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        c: R.Tensor((32,), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, w, b, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (x, v, c, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(R.nn.gelu(g), u)
            R.output(out)
        return out

    @R.function
    def expected(
        x: R.Tensor(("n", 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        v: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        c: R.Tensor((32,), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            weight = R.concat((w, v), axis=0)
            bias = R.concat((b, c), axis=0)
            out = R.call_dps_packed("cupola.gated_linear", (x, weight, bias, R.str("gelu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    becomes(fuse_gated_linear(), before, expected)


def test_one_weight_with_two_halves() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), both: R.Tensor((64, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, both, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            parts = R.split(product, 2, axis=-1)
            gate = parts[0]
            up = parts[1]
            out = R.multiply(up, R.nn.silu(gate))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), both: R.Tensor((64, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            out = R.call_dps_packed("cupola.gated_linear", (x, both, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    becomes(fuse_gated_linear(), before, expected)


def test_halves_in_the_other_order_stay() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), both: R.Tensor((64, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, both, 0, 0, R.str("")), out_ty=R.Tensor((n, 64), dtype="float32"))
            parts = R.split(product, 2, axis=-1)
            up = parts[0]
            gate = parts[1]
            out = R.multiply(R.nn.silu(gate), up)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


def test_a_split_of_the_rows_stays() -> None:
    @R.function
    def before(x: R.Tensor((8, 64), "float32"), both: R.Tensor((64, 64), "float32")):
        with R.dataflow():
            product = R.call_dps_packed("cupola.linear", (x, both, 0, 0, R.str("")), out_ty=R.Tensor((8, 64), dtype="float32"))
            parts = R.split(product, 2, axis=0)
            gate = parts[0]
            up = parts[1]
            out = R.multiply(R.nn.silu(gate), up)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


def test_different_inputs_stay() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        y: R.Tensor(("n", 64), "float32"),
        gate: R.Tensor((32, 64), "float32"),
        up: R.Tensor((32, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, gate, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (y, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(R.nn.silu(g), u)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


def test_a_result_that_is_used_twice_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), gate: R.Tensor((32, 64), "float32"), up: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, gate, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (x, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            product = R.multiply(R.nn.silu(g), u)
            out = R.add(product, u)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


def test_a_bias_on_one_side_only_stays() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 64), "float32"),
        gate: R.Tensor((32, 64), "float32"),
        up: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, gate, b, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (x, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(R.nn.silu(g), u)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


def test_a_gate_that_activates_the_normalized_product_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), gate: R.Tensor((32, 64), "float32"), up: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            g = R.call_dps_packed("cupola.linear", (x, gate, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            u = R.call_dps_packed("cupola.linear", (x, up, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            out = R.multiply(R.nn.silu(R.multiply(g, R.const(2.0, "float32"))), u)
            R.output(out)
        return out

    stays(fuse_gated_linear(), before)


@R.function
def halves_of_experts(x: R.Tensor(("n", 64), "float32"), index: R.Tensor(("n", 2), "int32"), w: R.Tensor((256, 64), "float32")):
    n = T.int64()
    with R.dataflow():
        both = R.call_dps_packed("cupola.expert_linear", (x, index, w, 0, 4), out_ty=R.Tensor((n, 2, 64), dtype="float32"))
        parts = R.split(both, 2, axis=2)
        out = R.multiply(R.nn.silu(parts[0]), parts[1])
        R.output(out)
    return out


def test_halves_of_experts() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 64), "float32"), index: R.Tensor(("n", 2), "int32"), w: R.Tensor((256, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            out = R.call_dps_packed(
                "cupola.gated_expert_linear", (x, index, w, 0, 4, R.str("silu")), out_ty=R.Tensor((n, 2, 32), dtype="float32")
            )
            R.output(out)
        return out

    becomes(fuse_gated_linear(), halves_of_experts, expected)


def test_a_gate_with_limits_stays() -> None:
    """As gpt-oss has it: between the product and the activation something else happens."""

    @R.function
    def limited(x: R.Tensor(("n", 64), "float32"), index: R.Tensor(("n", 2), "int32"), w: R.Tensor((256, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            both = R.call_dps_packed("cupola.expert_linear", (x, index, w, 0, 4), out_ty=R.Tensor((n, 2, 64), dtype="float32"))
            parts = R.split(both, 2, axis=2)
            gate = R.minimum(parts[0], R.const(7.0, "float32"))
            out = R.multiply(R.nn.silu(gate), parts[1])
            R.output(out)
        return out

    stays(fuse_gated_linear(), limited)
