from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.store_weights import store_weights
from tests.passes.harness import becomes, stays


@R.function
def before(
    tokens: R.Tensor(("n",), "int32"),
    table: R.Tensor((100, 64), "float32"),
    w: R.Tensor((32, 64), "float32"),
    b: R.Tensor((32,), "float32"),
    g: R.Tensor((64, 32), "float32"),
):
    n = T.int64()
    with R.dataflow():
        x = R.take(table, tokens, axis=0, mode="clip")
        y = R.call_dps_packed("cupola.linear", (x, w, b, 0, R.str("relu")), out_ty=R.Tensor((n, 32), dtype="float32"))
        out = R.call_dps_packed("cupola.gated_linear", (y, g, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
        R.output(out)
    return out


def test_weights_of_linear_layers_and_embeddings_shrink_and_biases_do_not() -> None:
    @R.function
    def expected(
        tokens: R.Tensor(("n",), "int32"),
        table: R.Tensor((100, 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        g: R.Tensor((64, 32), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            small_table = R.astype(table, "bfloat16")
            rows = R.take(small_table, tokens, axis=0, mode="clip")
            x = R.astype(rows, "float32")
            small_w = R.astype(w, "bfloat16")
            y = R.call_dps_packed("cupola.linear", (x, small_w, b, 0, R.str("relu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            small_g = R.astype(g, "bfloat16")
            out = R.call_dps_packed("cupola.gated_linear", (y, small_g, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    becomes(store_weights("bfloat16"), before, expected)


def test_float32_stays() -> None:
    stays(store_weights("float32"), before)


def test_rows_of_activations_stay() -> None:
    @R.function
    def rows(rows: R.Tensor(("r",), "int32"), x: R.Tensor(("n", 64), "float32")):
        with R.dataflow():
            out = R.take(x, rows, axis=0, mode="clip")
            R.output(out)
        return out

    stays(store_weights("float16"), rows)


def test_columns_and_scalars_of_a_table_stay() -> None:
    @R.function
    def columns(
        index: R.Tensor(("r",), "int32"),
        one: R.Tensor((), "int32"),
        table: R.Tensor((100, 64), "float32"),
        flat: R.Tensor((64,), "float32"),
    ):
        with R.dataflow():
            a = R.take(table, index, axis=1, mode="clip")
            b = R.take(table, one, axis=0, mode="clip")
            c = R.take(flat, index, mode="clip")
            R.output(a, b, c)
        return (a, b, c)

    stays(store_weights("float16"), columns)
