from __future__ import annotations

import pytest
from tvm import IRModule, relax
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.page_attention import page_attention
from cupola.passes.rewrite import shape_of
from cupola.runtime.artifact.state import NUM_BLOCKS, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets import ops
from tests.passes.harness import apply

FIRST = (TensorSpec("k_pages", "float16", (2, NUM_BLOCKS, 2, 16, 32)), TensorSpec("v_pages", "float16", (2, NUM_BLOCKS, 2, 32, 8)))
SECOND = (TensorSpec("both", "float16", (1, 1, NUM_BLOCKS, 8, 32)),)
KV = KVSpec((KVGroup((0, 2), 2, 16, 8, pools=FIRST), KVGroup((1,), 1, 4, 4, window=8, pools=SECOND)), "float16", 32)


@R.function
def before(
    tokens: R.Tensor(("n",), "int32"),
    positions: R.Tensor(("n",), "int32"),
    logit_rows: R.Tensor(("r",), "int32"),
    weight: R.Tensor((4,), "float32"),
):
    R.func_attr({"num_input": 3})
    n = T.int64()
    with R.dataflow():
        q = R.zeros((n, 4, 16), "float32")
        k = R.zeros((n, 2, 16), "float32")
        v = R.zeros((n, 2, 8), "float32")
        first = R.call_dps_packed(
            "cupola.attention", (q, k, v, 0, 0, 2, T.float64(0.25), 0, T.float64(0.0)), out_ty=R.Tensor((n, 4, 8), dtype="float32")
        )
        q1 = R.zeros((n, 4, 4), "float32")
        k1 = R.zeros((n, 1, 4), "float32")
        slopes = R.add(weight, weight)
        second = R.call_dps_packed(
            "cupola.attention",
            (q1, k1, k1, slopes, weight, 1, T.float64(0.5), 8, T.float64(3.0)),
            out_ty=R.Tensor((n, 4, 4), dtype="float32"),
        )
        R.output(first, second)
    return (first, second)


@pytest.fixture(scope="module")
def after() -> IRModule:
    return apply(page_attention(KV), before)


def test_the_entry_takes_bounds_and_the_pages_of_every_group(after: IRModule) -> None:
    func = after["forward"]
    shapes = {}
    for var in func.params:
        sizes = [size if isinstance(size, int) else str(size) for size in shape_of(var)]
        shapes[var.name] = (sizes, str(var.ty.dtype))
    assert list(shapes) == [
        "tokens", "positions", "query_starts", "context_lens", "logit_rows", "slots.0", "block_tables.0", "k_pages.0", "v_pages.0",
        "slots.1", "block_tables.1", "both.1", "weight",
    ]  # fmt: skip
    assert shapes["k_pages.0"] == ([2, "num_blocks_0", 2, 16, 32], "float16")
    assert shapes["v_pages.0"] == ([2, "num_blocks_0", 2, 32, 8], "float16")
    assert shapes["both.1"] == ([1, 1, "num_blocks_1", 8, 32], "float16")
    assert shapes["slots.1"] == (["n"], "int32") and shapes["block_tables.1"] == (["b", "max_blocks_1"], "int32")
    assert int(func.attrs["num_input"]) == len(shapes) - 1


def test_pools_of_different_groups_may_differ_in_size(after: IRModule) -> None:
    sizes = {var.name: var.ty.shape for var in after["forward"].params}
    assert not sizes["k_pages.0"][1].same_as(sizes["both.1"][2])
    assert sizes["k_pages.0"][1].same_as(sizes["v_pages.0"][1])
    assert not sizes["block_tables.0"][1].same_as(sizes["block_tables.1"][1])


def test_every_marker_reads_its_group_at_its_place(after: IRModule) -> None:
    values = [binding.value for block in after["forward"].body.blocks for binding in block.bindings]
    found = [paged for value in values if (paged := ops.PagedAttention.match(value)) is not None]
    assert not any(ops.Attention.match(value) for value in values)
    full, windowed = found
    assert ([pool.name for pool in full.pools], full.kv_dtype, full.layer) == (["k_pages.0", "v_pages.0"], "float16", 1)
    assert (full.slots.name, full.window, full.slopes) == ("slots.0", 0, None)
    assert ([pool.name for pool in windowed.pools], windowed.block_tables.name, windowed.layer) == (["both.1"], "block_tables.1", 0)
    assert (windowed.scale, windowed.window, windowed.softcap) == (0.5, 8, 3.0)
    assert shape_of(full.q)[1:] == [64] and shape_of(full.k)[1:] == [32] and shape_of(full.v)[1:] == [16]
    assert (full.cos, full.q_start, full.k_start, full.v_start) == (None, 0, 0, 0)
    assert windowed.sinks.name == "weight" and isinstance(windowed.slopes, relax.DataflowVar)
