from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.drop_batch import drop_batch
from cupola.passes.rewrite import name_of
from cupola.targets import ops
from tests.passes.harness import apply, becomes, module, run, stays


@R.function
def block(
    tokens: R.Tensor(("n",), "int32"),
    table: R.Tensor((32, 64), "float32"),
    w: R.Tensor((64, 64), "float32"),
    g: R.Tensor((64,), "float32"),
    b: R.Tensor((64,), "float32"),
):
    n = T.int64()
    with R.dataflow():
        x = R.take(table, R.expand_dims(tokens, axis=[0]), axis=0)
        normed = R.nn.layer_norm(x, g, b, axes=[-1])
        heads = R.permute_dims(R.reshape(R.matmul(normed, w), (1, n, 4, 16)), [0, 2, 1, 3])
        left = R.strided_slice(heads, axes=[3], begin=[0], end=[8])
        right = R.strided_slice(heads, axes=[-1 + 4], begin=[8], end=[16])
        turned = R.concat((R.negative(right), left), axis=-1)
        back = R.reshape(R.permute_dims(turned, [0, 2, 1, 3]), (1, n, 64))
        parts = R.split(R.add(x, back), 2, axis=2)
        gated = R.multiply(R.nn.silu(parts[0]), parts[1])
        centered = R.subtract(gated, R.mean(gated, axis=[-1], keepdims=True))
        out = R.reshape(centered, (n, 32))
        R.output(out)
    return out


def test_a_block_comes_out_flat_with_the_same_numbers() -> None:
    random = np.random.default_rng(0)
    arrays = [
        random.integers(0, 32, 5).astype("int32"),
        *(random.normal(size=s).astype("float32") for s in ((32, 64), (64, 64), (64,), (64,))),
    ]
    after = apply(drop_batch(), block)
    assert not has_batch_axis(after)
    np.testing.assert_allclose(run(after, *arrays), run(module(block), *arrays), rtol=1e-5, atol=1e-6)


def has_batch_axis(mod: IRModule) -> bool:
    """True if a value of the function has a first axis of 1."""
    bindings = [binding for part in mod["forward"].body.blocks for binding in part.bindings]
    tensors = [b.var.ty for b in bindings if isinstance(b.var.ty, relax.TensorType) and len(b.var.ty.shape)]
    return any(isinstance(t.shape[0], tvm.tirx.IntImm) and int(t.shape[0]) == 1 for t in tensors)


def test_the_docstring() -> None:
    @R.function
    def before(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            x = R.take(table, R.reshape(R.nn.relu(tokens), (1, n)), axis=0)
            y = R.reshape(R.nn.silu(x), (1, n, 4, 16))
            out = R.take(y, R.const(0, "int64"), axis=0)
            R.output(out)
        return out

    @R.function
    def expected(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((32, 64), "float32")):
        n = T.int64()
        with R.dataflow():
            same = R.nn.relu(tokens)
            x = R.take(table, same, axis=0)
            y = R.nn.silu(x)
            out = R.reshape(y, (n, 4, 16))
            R.output(out)
        return out

    becomes(drop_batch(), before, expected)


def test_attention_gets_tokens_first() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32")):
        n = T.int64()
        with R.dataflow():
            heads = R.permute_dims(R.reshape(R.expand_dims(x, axis=[0]), (1, n, 4, 16)), [0, 2, 1, 3])
            marked = R.call_dps_packed(
                "cupola.attention",
                (heads, heads, heads, 0, 0, 3, T.float64(0.25), 7, T.float64(0.0)),
                out_ty=R.Tensor((1, n, 4, 16), dtype="float32"),
            )
            out = R.reshape(marked, (n, 64))
            R.output(out)
        return out

    values = [binding.value for part in apply(drop_batch(), before)["forward"].body.blocks for binding in part.bindings]
    (marker,) = [found for value in values if (found := ops.Attention.match(value)) is not None]
    assert str(marker.q.ty.shape[0]) == "n" and [int(size) for size in list(marker.q.ty.shape)[1:]] == [4, 16]
    assert (marker.layer, marker.scale, marker.window, marker.slopes) == (3, 0.25, 7, None)


def batched(make) -> relax.Function:
    """forward(x [4, 8], y [1, 4, 8], z [3, 1, 1]): `make` of x with a batch axis, y and z; then flat again."""
    builder = relax.BlockBuilder()
    x, y, z = (relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in (("x", [4, 8]), ("y", [1, 4, 8]), ("z", [3, 1, 1])))
    with builder.function("forward", [x, y, z]):
        with builder.dataflow():
            made = builder.emit(make(builder.emit(relax.op.expand_dims(x, 0)), y, z))
            out = builder.emit_output(relax.op.reshape(made, [-1]))
        builder.emit_func_output(out)
    return builder.get()["forward"]


KEEP_THEIR_MEANING = {
    "the batch axis moves": lambda x, y, z: relax.op.permute_dims(x, [1, 0, 2]),
    "all axes reverse": lambda x, y, z: relax.op.permute_dims(x),
    "a second batch axis": lambda x, y, z: relax.op.expand_dims(x, 0),
    "batches are concatenated": lambda x, y, z: relax.op.concat([x, x], axis=0),
    "batches are stacked": lambda x, y, z: relax.op.stack([x, x], axis=0),
    "a mean over the batch": lambda x, y, z: relax.op.mean(x, axis=[0]),
    "a mean over everything": lambda x, y, z: relax.op.mean(x),
    "the batch is repeated": lambda x, y, z: relax.op.repeat(x, 3, axis=0),
    "everything is repeated": lambda x, y, z: relax.op.repeat(x, 3),
    "a slice of the batch": lambda x, y, z: relax.op.strided_slice(x, [0], [0], [1]),
    "the batch is picked twice": lambda x, y, z: relax.op.take(x, relax.const(np.array([0, 0])), axis=0, mode="clip"),
    "a sum with something batched": lambda x, y, z: relax.op.add(x, y),
    "concatenated with something batched": lambda x, y, z: relax.op.concat([x, y], axis=1),
    "stacked with something batched": lambda x, y, z: relax.op.stack([y, x], axis=1),
    "a product that makes batches": lambda x, y, z: relax.op.multiply(x, z),
    "a maximum, which the pass does not know": lambda x, y, z: relax.op.max(x, axis=[0]),
}


@pytest.mark.parametrize("name", KEEP_THEIR_MEANING)
def test_what_means_the_batch_axis_keeps_its_meaning(name: str) -> None:
    before = batched(KEEP_THEIR_MEANING[name])
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype("float32") for shape in ((4, 8), (1, 4, 8), (3, 1, 1))]
    np.testing.assert_allclose(run(apply(drop_batch(), before), *arrays), run(module(before), *arrays), rtol=1e-6)


def test_a_function_without_batches_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), y: R.Tensor((1, 64), "float32")):
        with R.dataflow():
            out = R.add(R.nn.relu(x), y)
            R.output(out)
        return out

    stays(drop_batch(), before)


def test_rows_of_a_table_gathered_entry_by_entry_lose_it() -> None:
    """Angles as GPT-J reads them; the table gets its axis of 1 for the purpose."""

    @R.function
    def before(positions: R.Tensor(("n",), "int32"), table: R.Tensor((32, 8), "float32")):
        n = T.int64()
        with R.dataflow():
            rows = R.reshape(R.expand_dims(positions, axis=[0]), (1, n, 1))
            angles = R.gather_elements(R.tile(table, (1, 1, 1)), R.tile(rows, (1, 1, 8)), axis=1)
            out = R.reshape(R.negative(angles), (n, 8))
            R.output(out)
        return out

    after = apply(drop_batch(), before)
    bindings = [binding for part in after["forward"].body.blocks for binding in part.bindings]
    ranks = {name_of(b.value): len(b.var.ty.shape) for b in bindings if isinstance(b.value, relax.Call)}
    assert ranks["gather_elements"] == ranks["negative"] == 2
    random = np.random.default_rng(0)
    arrays = [np.array([3, 31, 0, 3], "int32"), random.normal(size=(32, 8)).astype("float32")]
    np.testing.assert_array_equal(run(after, *arrays), -arrays[1][arrays[0]])


@R.function
def gated_heads(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((32, 64), "float32"), g: R.Tensor((16,), "float32")):
    n = T.int64()
    with R.dataflow():
        x = R.take(table, R.expand_dims(tokens, axis=[0]), axis=0)
        rows = R.reshape(R.reshape(x, (1, n, 4, 16)), (n * 4, 16))
        squares = R.mean(R.multiply(rows, rows), axis=[-1], keepdims=True)
        normed = R.multiply(R.multiply(rows, R.rsqrt(squares)), g)
        heads = R.reshape(R.multiply(normed, R.nn.silu(rows)), (1, n, 4, 16))
        out = R.reshape(heads, (n, 64))
        R.output(out)
    return out


def test_tokens_stay_apart_from_heads_that_a_model_merges_them_with() -> None:
    random = np.random.default_rng(0)
    arrays = random.integers(0, 32, 5).astype("int32"), random.normal(size=(32, 64)).astype("float32"), np.ones(16, "float32")
    after = apply(drop_batch(), gated_heads)
    np.testing.assert_allclose(run(after, *arrays), run(module(gated_heads), *arrays), rtol=1e-5)
    shapes = [binding.var.ty.shape for block in after["forward"].body.blocks for binding in block.bindings]
    assert not any(isinstance(size, tvm.tirx.Mul) for shape in shapes for size in shape)


@R.function
def recurrent_layer(tokens: R.Tensor(("n",), "int32"), table: R.Tensor((32, 64), "float32"), w: R.Tensor((64, 3), "float32")):
    n = T.int64()
    with R.dataflow():
        x = R.take(table, R.expand_dims(tokens, axis=[0]), axis=0)
        mixed = R.call_dps_packed("cupola.causal_conv", (2, 0, 0, 0, 0, x, w, 0), out_ty=R.Tensor((1, n, 64), dtype="float32"))
        heads = R.reshape(mixed, (1, n, 4, 16))
        decay = R.reshape(R.strided_slice(x, axes=[2], begin=[0], end=[4]), (1, n, 4))
        out_heads = R.call_dps_packed(
            "cupola.linear_attention", (3, 0, 0, 0, 0, heads, heads, heads, decay, 0), out_ty=R.Tensor((1, n, 4, 16), dtype="float32")
        )
        out = R.reshape(out_heads, (n, 64))
        R.output(out)
    return out


def test_recurrences_have_a_row_a_token() -> None:
    after = apply(drop_batch(), recurrent_layer)
    values = [binding.value for block in after["forward"].body.blocks for binding in block.bindings]
    convolution, attention = [op for value in values if (op := ops.match_recurrence(value)) is not None]
    assert (convolution.layer, len(convolution.x.ty.shape), attention.layer) == (2, 2, 3)
    assert [len(x.ty.shape) for x in (attention.q, attention.k, attention.v, attention.decay)] == [3, 3, 3, 2]
