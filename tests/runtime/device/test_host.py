"""Memory of the host as a device's."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.runtime.artifact.arrays import numpy_dtype
from cupola.runtime.artifact.state import NUM_BLOCKS, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import ITEM_BYTES, TensorSpec
from cupola.runtime.device.arguments import measure
from cupola.runtime.device.host import HostDevice, HostOutput, tensor_of
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.errors import EngineError
from tests.systems import needs

DEVICE = HostDevice()


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_tensors_are_aligned_and_of_the_manifests_dtypes(dtype: str) -> None:
    for make in (DEVICE.empty, DEVICE.zeros):
        tensor = make(dtype, (3, 5))
        assert tensor.address % 64 == 0 and (tensor.dtype, tensor.shape) == (dtype, (3, 5))
        assert tensor.memory.shape == (3, 5) and tensor.memory.itemsize == ITEM_BYTES[dtype] == numpy_dtype(dtype).itemsize
    assert not DEVICE.zeros(dtype, (3, 5)).memory.any()
    assert DEVICE.empty(dtype, (0, 5)).address % 64 == 0


def test_a_head_is_the_same_memory() -> None:
    whole = DEVICE.zeros("uint8", (64,))
    head = DEVICE.head(whole, "float32", (2, 3))
    DEVICE.upload(np.arange(6, dtype=np.float32).reshape(2, 3), head)
    assert head.address == whole.address and whole.memory.view(np.float32)[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert DEVICE.download(head) is head.memory


@pytest.mark.parametrize("array", [np.zeros(3, np.int64), np.zeros(1, np.int32), np.zeros((3, 1), np.int32)])
def test_numpys_conversions_are_refused(array: np.ndarray) -> None:
    with pytest.raises(EngineError, match=r"was given for int32 \(3,\)"):
        DEVICE.upload(array, DEVICE.empty("int32", (3,)))


def test_arrays_with_gaps_are_refused() -> None:
    with pytest.raises(EngineError, match="has gaps"):
        tensor_of(np.zeros((4, 4), np.float32)[:, :2], "float32")


def test_blocks_go_to_the_swap_space_and_back() -> None:
    keys, values = TensorSpec("k_pages", "bfloat16", (2, NUM_BLOCKS, 8)), TensorSpec("v_pages", "bfloat16", (NUM_BLOCKS, 2, 8))
    kv = KVSpec((KVGroup((0, 1), 1, 2, 2, 0, (keys, values)),), "bfloat16", 4)
    pools = DEVICE.page_pools(kv, [3], SwapSpace(kv, [2]))
    first, second = (tensor.memory for tensor in pools.tensors.values())
    first[:, 1], second[1] = 7, 8
    pools.copy_blocks([(0, 1, 4), (0, 0, 1), (0, 4, 2)])
    assert list(pools.tensors) == ["k_pages.0", "v_pages.0"]
    assert first.max(axis=(0, 2)).tolist() == [0, 0, 7] and second.max(axis=(1, 2)).tolist() == [0, 0, 8]


def test_the_bytes_of_a_block_fit_any_block_of_its_group() -> None:
    keys, values = TensorSpec("k_pages", "bfloat16", (2, NUM_BLOCKS, 8)), TensorSpec("v_pages", "int8", (NUM_BLOCKS, 2, 8))
    kv = KVSpec((KVGroup((0, 1), 1, 2, 2, 0, (keys, values)),), "bfloat16", 4)
    pools = DEVICE.page_pools(kv, [3], SwapSpace(kv, [1]))
    first, second = (tensor.memory for tensor in pools.tensors.values())
    first[:, 1], second[1] = np.arange(16).reshape(2, 8), -np.arange(16).reshape(2, 8)
    data = pools.read_block(0, 1)
    assert len(data) == kv.group_bytes_per_block(0) and pools.write_block(0, 2, data)
    assert (first[:, 2] == first[:, 1]).all() and (second[2] == second[1]).all() and not first[:, 0].any()
    assert not pools.write_block(0, 0, data[:-1]) and not pools.write_block(0, 0, data + b"0") and not first[:, 0].any()


@needs("to know the machine's memory")
def test_memory_is_what_the_machine_has() -> None:
    assert 1 << 28 < DEVICE.memory_budget() < 1 << 50


def test_sizes_are_read_off_tensors() -> None:
    specs = [TensorSpec("x", "int32", ("n",)), TensorSpec("starts", "int32", ("b + 1",)), TensorSpec("table", "int32", ("b", "w"))]
    tensors = [DEVICE.empty("int32", shape) for shape in ((5,), (3,), (2, 7))]
    assert measure(specs, tensors, {"k": 4}) == {"k": 4, "n": 5, "b": 2, "w": 7}
    with pytest.raises(EngineError, match=r"'x' is int32 \[5\] where int32 \['n'\] is taken"):
        measure(specs, tensors, {"n": 4})
    with pytest.raises(EngineError, match="2 tensors were given where 3 are taken"):
        measure(specs, tensors[:2])
    with pytest.raises(EngineError, match=r"'x' is int32 \[5\] where float32 \['n'\] is taken"):
        measure([TensorSpec("x", "float32", ("n",))], tensors[:1])
    odd = tensor_of(np.zeros(20, np.int32)[1:], "int32")
    with pytest.raises(EngineError, match="'x' begins at an address that is no multiple of 64"):
        measure(specs[:1], [odd if odd.address % 64 else tensor_of(odd.memory[1:], "int32")])


def test_results_are_views() -> None:
    logits = np.arange(200, dtype=np.float32).reshape(2, 100)
    output = HostOutput.of(logits)
    assert output.result() is output
    assert output.rows(range(1, 2)).base is not None and np.shares_memory(output.rows(range(1, 2)), logits)
    assert output.row(1).tolist() == logits[1].tolist() == output.rows([1, 0])[0].tolist()
    assert output.maxima(0).tolist() == [63, 99] and output.argmax().tolist() == [[99, 99]]
