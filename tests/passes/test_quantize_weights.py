from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.quantize_weights import quantize_weights
from cupola.passes.schemes import SCHEMES, scheme_of
from cupola.targets.ops import ExpertLinear, Linear
from tests.passes.harness import apply, becomes, stays


@R.function
def before(
    tokens: R.Tensor(("n",), "int32"),
    table: R.Tensor((100, 64), "float32"),
    w: R.Tensor((32, 64), "float32"),
    b: R.Tensor((32,), "float32"),
    g: R.Tensor((64, 32), "float32"),
    head: R.Tensor((100, 32), "float32"),
):
    n = T.int64()
    with R.dataflow():
        x = R.take(table, tokens, axis=0, mode="clip")
        y = R.call_dps_packed("cupola.linear", (x, w, b, 0, R.str("relu")), out_ty=R.Tensor((n, 32), dtype="float32"))
        z = R.call_dps_packed("cupola.gated_linear", (y, g, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
        out = R.call_dps_packed("cupola.linear", (z, head, 0, 0, R.str("")), out_ty=R.Tensor((n, 100), dtype="float32"))
        R.output(out)
    return out


def test_floats_of_16_bits() -> None:
    @R.function
    def expected(
        tokens: R.Tensor(("n",), "int32"),
        table: R.Tensor((100, 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        g: R.Tensor((64, 32), "float32"),
        head: R.Tensor((100, 32), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            small_table = R.astype(table, "bfloat16")
            rows = R.take(small_table, tokens, axis=0, mode="clip")
            x = R.astype(rows, "float32")
            small_w = R.astype(w, "bfloat16")
            y = R.call_dps_packed("cupola.linear", (x, small_w, b, 0, R.str("relu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            small_g = R.astype(g, "bfloat16")
            z = R.call_dps_packed("cupola.gated_linear", (y, small_g, 0, R.str("silu")), out_ty=R.Tensor((n, 32), dtype="float32"))
            small_head = R.astype(head, "bfloat16")
            out = R.call_dps_packed("cupola.linear", (z, small_head, 0, 0, R.str("")), out_ty=R.Tensor((n, 100), dtype="float32"))
            R.output(out)
        return out

    becomes(quantize_weights(SCHEMES["bf16"]), before, expected)


def test_float32_stays() -> None:
    stays(quantize_weights(SCHEMES["f32"]), before)


def test_codes_of_4_bits_and_an_embedding_of_8() -> None:
    @R.function
    def expected(
        tokens: R.Tensor(("n",), "int32"),
        table: R.Tensor((100, 64), "float32"),
        w: R.Tensor((32, 64), "float32"),
        b: R.Tensor((32,), "float32"),
        g: R.Tensor((64, 32), "float32"),
        head: R.Tensor((100, 32), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            t = R.call_dps_packed(
                "cupola.weight.encode",
                (R.str("w8g32"), table),
                out_ty=[R.Tensor((100, 64), dtype="int8"), R.Tensor((100, 2), dtype="float16")],
            )
            t0 = t[0]
            t1 = t[1]
            x = R.call_dps_packed("cupola.embedding", (t0, t1, 0, R.str("w8g32"), tokens), out_ty=R.Tensor((n, 64), dtype="float32"))
            e = R.call_dps_packed(
                "cupola.weight.encode", (R.str("w4g32"), w), out_ty=[R.Tensor((32, 64), dtype="uint8"), R.Tensor((32, 2), dtype="float16")]
            )
            e0 = e[0]
            e1 = e[1]
            y = R.call_dps_packed(
                "cupola.linear",
                (x, e0, b, 0, R.str("relu"), e1, 0, R.str("w4g32"), 0, T.float64(0.0), 32),
                out_ty=R.Tensor((n, 32), dtype="float32"),
            )
            f = R.call_dps_packed(
                "cupola.weight.encode", (R.str("w4g32"), g), out_ty=[R.Tensor((64, 32), dtype="uint8"), R.Tensor((64, 1), dtype="float16")]
            )
            f0 = f[0]
            f1 = f[1]
            z = R.call_dps_packed(
                "cupola.gated_linear",
                (y, f0, 0, R.str("silu"), f1, 0, R.str("w4g32"), 0, T.float64(0.0), 32),
                out_ty=R.Tensor((n, 32), dtype="float32"),
            )
            h = R.call_dps_packed(
                "cupola.weight.encode",
                (R.str("w8g32"), head),
                out_ty=[R.Tensor((100, 32), dtype="int8"), R.Tensor((100, 1), dtype="float16")],
            )
            h0 = h[0]
            h1 = h[1]
            out = R.call_dps_packed(
                "cupola.linear",
                (z, h0, 0, 0, R.str(""), h1, 0, R.str("w8g32"), 0, T.float64(0.0), 32),
                out_ty=R.Tensor((n, 100), dtype="float32"),
            )
            R.output(out)
        return out

    becomes(quantize_weights(SCHEMES["w4a8"]), before, expected)


@R.function
def joined(x: R.Tensor(("n", 40), "float32"), a: R.Tensor((32, 40), "float32"), b: R.Tensor((8, 40), "float32")):
    n = T.int64()
    with R.dataflow():
        w = R.concat((a, b), axis=0)
        y = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 40), dtype="float32"))
        out = R.call_dps_packed("cupola.linear", (y, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 40), dtype="float32"))
        R.output(out)
    return out


def test_parts_of_a_joined_weight_are_encoded_alone_and_rows_are_padded() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 40), "float32"), a: R.Tensor((32, 40), "float32"), b: R.Tensor((8, 40), "float32")):
        n = T.int64()
        with R.dataflow():
            p = R.call_dps_packed(
                "cupola.weight.encode",
                (R.str("w4g32m"), a),
                out_ty=[R.Tensor((32, 64), dtype="uint8"), R.Tensor((32, 2), dtype="float16"), R.Tensor((32, 2), dtype="float16")],
            )
            p0 = p[0]
            p1 = p[1]
            p2 = p[2]
            q = R.call_dps_packed(
                "cupola.weight.encode",
                (R.str("w4g32m"), b),
                out_ty=[R.Tensor((8, 64), dtype="uint8"), R.Tensor((8, 2), dtype="float16"), R.Tensor((8, 2), dtype="float16")],
            )
            q0 = q[0]
            q1 = q[1]
            q2 = q[2]
            codes = R.concat((p0, q0), axis=0)
            scales = R.concat((p1, q1), axis=0)
            mins = R.concat((p2, q2), axis=0)
            out = R.call_dps_packed(
                "cupola.linear", (x, codes, 0, 0, R.str(""), scales, mins, R.str("w4g32m")), out_ty=R.Tensor((n, 40), dtype="float32")
            )
            R.output(out)
        return out

    @R.function
    def once(x: R.Tensor(("n", 40), "float32"), a: R.Tensor((32, 40), "float32"), b: R.Tensor((8, 40), "float32")):
        n = T.int64()
        with R.dataflow():
            w = R.concat((a, b), axis=0)
            out = R.call_dps_packed("cupola.linear", (x, w, 0, 0, R.str("")), out_ty=R.Tensor((n, 40), dtype="float32"))
            R.output(out)
        return out

    becomes(quantize_weights(scheme_of("w4a16", "w4"), {"a": "Q4_0", "b": "Q4_1"}), once, expected)


@pytest.mark.parametrize("quant", ["w4a8", "w8a16"])
def test_a_tied_embedding_is_encoded_once(quant: str) -> None:
    @R.function
    def tied(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((100, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            x = R.take(table, tokens, axis=0, mode="clip")
            out = R.call_dps_packed("cupola.linear", (x, table, 0, 0, R.str("")), out_ty=R.Tensor((n, 100), dtype="float32"))
            R.output(out)
        return out

    mod = relax.transform.EliminateCommonSubexpr()(apply(quantize_weights(SCHEMES[quant]), tied))
    assert mod.script().count('"cupola.weight.encode", (R.str("w8g32"), table)') == 1
    assert mod.script().count("[0]") == mod.script().count("[1]") == 1


def test_only_the_last_linear_is_stored_as_the_embedding_is() -> None:
    text = apply(quantize_weights(scheme_of("w8a16", "w4")), joined).script()
    first, last = (line for line in text.splitlines() if '"cupola.linear"' in line)
    assert (
        text.count('weight.encode", (R.str("w8g32")') == text.count('weight.encode_weighted", (R.str("w4g32")') == 2
        and 'dtype="int8"' in text
    )
    assert text.index("weight.encode") < text.index(first) < text.index("weight.encode_weighted") < text.index(last)


def test_an_embedding_of_floats_beside_quantized_layers() -> None:
    after = apply(quantize_weights(scheme_of("w8a8", "f16")), before)
    last = [line for line in after.script().splitlines() if '"cupola.linear"' in line][-1]
    assert after.script().count('"float16")') and '"cupola.weight.encode", (R.str("w8g32")' in after.script() and "T.float64" not in last


def test_rows_of_activations_and_tables_of_positions_stay() -> None:
    @R.function
    def rows(
        tokens: R.Tensor(("n",), "int32"),
        positions: R.Tensor(("n",), "int32"),
        logit_rows: R.Tensor(("r",), "int32"),
        x: R.Tensor(("n", 64), "float32"),
        table: R.Tensor((100, 64), "float32"),
        flat: R.Tensor((64,), "float32"),
    ):
        with R.dataflow():
            a = R.take(x, logit_rows, axis=0, mode="clip")
            b = R.take(table, positions, axis=0, mode="clip")
            c = R.take(table, tokens, axis=1, mode="clip")
            d = R.take(flat, tokens, mode="clip")
            R.output(a, b, c, d)
        return (a, b, c, d)

    for name in ("f16", "w4a8"):
        stays(quantize_weights(SCHEMES[name]), rows)


def test_a_weight_that_is_computed_is_encoded_whole() -> None:
    @R.function
    def scaled(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 32), "float32")):
        n = T.int64()
        with R.dataflow():
            turned = R.permute_dims(w)
            out = R.call_dps_packed("cupola.linear", (x, turned, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), dtype="float32"))
            R.output(out)
        return out

    text = apply(quantize_weights(SCHEMES["w8a8"], {"w": "Q8_0"}), scaled).script()
    turned = next(line.split(":")[0].strip() for line in text.splitlines() if "permute_dims" in line)
    assert f'"cupola.weight.encode", (R.str("w8g32"), {turned})' in text
    assert isinstance(tvm.script.from_source(text), tvm.IRModule)


def test_experts_are_stored_as_linear_layers_are_and_routers_stay() -> None:
    @R.function
    def mixture(
        x: R.Tensor(("n", 64), "float32"),
        router: R.Tensor((4, 64), "float32"),
        bias: R.Tensor((4,), "float32"),
        w: R.Tensor((4, 32, 64), "float32"),
        head: R.Tensor((96, 64), "float32"),
    ):
        n = T.int64()
        with R.dataflow():
            logits = R.call_dps_packed("cupola.linear", (x, router, 0, 0, R.str("")), out_ty=R.Tensor((n, 4), dtype="float32"))
            scores = R.add(R.sigmoid(logits), bias)
            index = R.call_dps_packed("cupola.top_k", (scores, 2), out_ty=R.Tensor((n, 2), dtype="int32"))
            flat = R.reshape(w, (128, 64))
            y = R.call_dps_packed("cupola.expert_linear", (x, index, flat, 0, 4), out_ty=R.Tensor((n, 2, 32), dtype="float32"))
            z = R.reshape(y, (n, 64))
            out = R.call_dps_packed("cupola.linear", (z, head, 0, 0, R.str("")), out_ty=R.Tensor((n, 96), dtype="float32"))
            R.output(out)
        return out

    quantized = apply(quantize_weights(SCHEMES["w4a8"]), mixture)
    linears = [op for call in calls_of(quantized) if (op := Linear.match(call)) is not None]
    (experts,) = (op for call in calls_of(quantized) if (op := ExpertLinear.match(call)) is not None)
    assert [linear.format for linear in linears] == ["", "w8g32"]
    assert (experts.format, experts.quantize_x, experts.num_experts) == ("w4g32", 32, 4)
    assert [int(size) for size in experts.weight.ty.shape] == [128, 64] and [int(size) for size in experts.scales.ty.shape] == [128, 2]


def calls_of(mod: tvm.IRModule) -> list[relax.Expr]:
    return [binding.value for block in mod["forward"].body.blocks for binding in block.bindings]
