from __future__ import annotations

import numpy as np
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.pick_rows_early import pick_rows_early
from tests.passes.harness import apply, becomes, module, run, stays


@R.function
def layer(
    h: R.Tensor(("n", 8), "float32"),
    attended: R.Tensor(("n", 8), "float32"),
    rows: R.Tensor(("r",), "int32"),
    norm: R.Tensor((8,), "float32"),
    wo: R.Tensor((8, 8), "float32"),
    up: R.Tensor((8, 32), "float32"),
    down: R.Tensor((16, 8), "float32"),
):
    with R.dataflow():
        stream = R.add(h, R.matmul(attended, wo))
        parts = R.split(R.matmul(R.nn.rms_norm(stream, norm, axes=[-1]), up), 2, axis=-1)
        hidden = R.multiply(R.nn.silu(parts[0]), parts[1])
        total = R.add(stream, R.multiply(R.const(0.5, "float32"), R.matmul(hidden, down)))
        out = R.take(R.nn.layer_norm(total, norm, norm, axes=[-1]), rows, axis=0, mode="clip")
        R.output(out)
    return out


def test_a_layer_runs_on_the_rows_that_are_read() -> None:
    @R.function
    def expected(
        h: R.Tensor(("n", 8), "float32"),
        attended: R.Tensor(("n", 8), "float32"),
        rows: R.Tensor(("r",), "int32"),
        norm: R.Tensor((8,), "float32"),
        wo: R.Tensor((8, 8), "float32"),
        up: R.Tensor((8, 32), "float32"),
        down: R.Tensor((16, 8), "float32"),
    ):
        with R.dataflow():
            attended_rows = R.take(attended, rows, axis=0, mode="clip")
            product = R.matmul(attended_rows, wo)
            h_rows = R.take(h, rows, axis=0, mode="clip")
            stream = R.add(h_rows, product)
            parts = R.split(R.matmul(R.nn.rms_norm(stream, norm, axes=[-1]), up), 2, axis=-1)
            gate = parts[0]
            activated = R.nn.silu(gate)
            other = parts[1]
            hidden = R.multiply(activated, other)
            total = R.add(stream, R.multiply(R.const(0.5, "float32"), R.matmul(hidden, down)))
            out = R.nn.layer_norm(total, norm, norm, axes=[-1])
            R.output(out)
        return out

    becomes(pick_rows_early(), layer, expected)
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape).astype("float32") for shape in ((8,), (8, 8), (8, 32), (16, 8))]
    inputs = [random.standard_normal((5, 8)).astype("float32") for _ in range(2)]
    for rows in ([4], [3, 0, 3, 9], [0, 1, 2, 3, 4]):  # one is repeated, one is clipped
        arguments = [*inputs, np.array(rows, "int32"), *weights]
        np.testing.assert_allclose(run(apply(pick_rows_early(), layer), *arguments), run(module(layer), *arguments), rtol=1e-5, atol=1e-5)


def test_what_is_read_whole_is_computed_whole() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32"), w: R.Tensor((8, 8), "float32")):
        with R.dataflow():
            product = R.matmul(x, w)
            picked = R.take(product, rows, axis=0, mode="clip")
            out = R.matmul(picked, R.permute_dims(product))
            R.output(out)
        return out

    stays(pick_rows_early(), before)


def test_the_choice_stops_below_a_value_that_is_read_whole() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
        with R.dataflow():
            shared = R.abs(x)
            rooted = R.sqrt(shared)
            picked = R.take(rooted, rows, axis=0, mode="clip")
            out = R.matmul(picked, R.permute_dims(shared))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
        with R.dataflow():
            shared = R.abs(x)
            picked = R.take(shared, rows, axis=0, mode="clip")
            rooted = R.sqrt(picked)
            out = R.matmul(rooted, R.permute_dims(shared))
            R.output(out)
        return out

    becomes(pick_rows_early(), before, expected)


def test_a_part_of_what_is_read_whole() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
        with R.dataflow():
            parts = R.split(x, 2, axis=1)
            picked = R.take(R.abs(parts[0]), rows, axis=0, mode="clip")
            out = R.matmul(picked, R.permute_dims(parts[1]))
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
        with R.dataflow():
            parts = R.split(x, 2, axis=1)
            first = parts[0]
            picked = R.take(first, rows, axis=0, mode="clip")
            rooted = R.abs(picked)
            out = R.matmul(rooted, R.permute_dims(parts[1]))
            R.output(out)
        return out

    becomes(pick_rows_early(), before, expected)


def test_what_is_the_same_for_every_row_stays_as_it_is() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32"), b: R.Tensor((8,), "float32"), gain: R.Tensor((1, 8), "float32")
    ):
        with R.dataflow():
            out = R.take(R.add(R.multiply(gain, x), b), rows, axis=0, mode="clip")
            R.output(out)
        return out

    @R.function
    def expected(
        x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32"), b: R.Tensor((8,), "float32"), gain: R.Tensor((1, 8), "float32")
    ):
        with R.dataflow():
            picked = R.take(x, rows, axis=0, mode="clip")
            out = R.add(R.multiply(gain, picked), b)
            R.output(out)
        return out

    becomes(pick_rows_early(), before, expected)


def test_what_mixes_rows_stays() -> None:
    @R.function
    def norm(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32"), w: R.Tensor(("n",), "float32")):
        with R.dataflow():
            out = R.take(R.nn.rms_norm(x, w, axes=[0]), rows, axis=0, mode="clip")
            R.output(out)
        return out

    @R.function
    def product(x: R.Tensor((8, "n"), "float32"), y: R.Tensor(("n", 4), "float32"), rows: R.Tensor(("r",), "int32")):
        n = T.int64()
        with R.dataflow():
            heads = R.matmul(R.reshape(x, (n, 2, 4)), R.reshape(y, (n, 4, 1)))
            out = R.take(heads, rows, axis=0, mode="clip")
            R.output(out)
        return out

    for before in (norm, product):
        stays(pick_rows_early(), before)


def test_rows_of_a_table_stay() -> None:
    @R.function
    def before(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((32, 8), "float32")):
        with R.dataflow():
            out = R.take(R.abs(table), tokens, axis=0, mode="clip")
            R.output(out)
        return out

    stays(pick_rows_early(), before)


def test_a_mixture_of_experts_runs_on_the_rows_that_are_read() -> None:
    @R.function
    def before(
        x: R.Tensor(("n", 8), "float32"),
        rows: R.Tensor(("r",), "int32"),
        router: R.Tensor((8, 4), "float32"),
        up: R.Tensor((64, 8), "float32"),
        down: R.Tensor((32, 16), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            scores = R.nn.softmax(R.matmul(x, router), axis=-1)
            index = R.call_dps_packed("cupola.top_k", (scores, 2), out_ty=R.Tensor((n, 2), "int32"))
            chosen = R.gather_elements(scores, index, axis=1)
            shares = R.divide(chosen, R.sum(chosen, axis=[-1], keepdims=True))
            each = R.reshape(R.expand_dims(x, axis=[1]), (n, 8))
            hidden = R.call_dps_packed("cupola.expert_linear", (each, index, up, 0, 4), out_ty=R.Tensor((n, 2, 16), "float32"))
            cut = R.strided_slice(hidden, [2], [0], [16], [1])
            parts = R.call_dps_packed("cupola.expert_linear", (cut, index, down, 0, 4), out_ty=R.Tensor((n, 2, 8), "float32"))
            total = R.sum(R.multiply(parts, R.reshape(shares, (n, 2, 1))), axis=[1])
            out = R.take(total, rows, axis=0, mode="clip")
            R.output(out)
        return out

    @R.function
    def expected(
        x: R.Tensor(("n", 8), "float32"),
        rows: R.Tensor(("r",), "int32"),
        router: R.Tensor((8, 4), "float32"),
        up: R.Tensor((64, 8), "float32"),
        down: R.Tensor((32, 16), "float32"),
    ):
        r = T.int64()
        with R.dataflow():
            picked = R.take(x, rows, axis=0, mode="clip")
            scores = R.nn.softmax(R.matmul(picked, router), axis=-1)
            index = R.call_dps_packed("cupola.top_k", (scores, 2), out_ty=R.Tensor((r, 2), "int32"))
            chosen = R.gather_elements(scores, index, axis=1)
            shares = R.divide(chosen, R.sum(chosen, axis=[-1], keepdims=True))
            each = R.reshape(R.expand_dims(picked, axis=[1]), (r, 8))
            hidden = R.call_dps_packed("cupola.expert_linear", (each, index, up, 0, 4), out_ty=R.Tensor((r, 2, 16), "float32"))
            cut = R.strided_slice(hidden, [2], [0], [16], [1])
            parts = R.call_dps_packed("cupola.expert_linear", (cut, index, down, 0, 4), out_ty=R.Tensor((r, 2, 8), "float32"))
            out = R.sum(R.multiply(parts, R.reshape(shares, (r, 2, 1))), axis=[1])
            R.output(out)
        return out

    becomes(pick_rows_early(), before, expected)


def test_sums_over_rows_stay() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")):
        with R.dataflow():
            out = R.take(R.multiply(x, R.nn.softmax(x, axis=0)), rows, axis=0, mode="clip")
            R.output(out)
        return out

    after = apply(pick_rows_early(), before)
    kept = [binding.value for block in after["forward"].body.blocks for binding in block.bindings]
    assert [value.op.name for value in kept if value.op.name == "relax.nn.softmax" and str(value.ty.shape[0]) == "n"]
