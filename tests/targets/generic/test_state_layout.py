from __future__ import annotations

import numpy as np
import pytest

from cupola.runtime.artifact.state import LATENT, KVGroup
from cupola.targets.cpu.isa import ISAS
from cupola.targets.cpu.state_layout import layout
from cupola.targets.generic.state_layout import LAYOUT

CPU = layout(next(isa for isa in ISAS if isa.bf16_dot))
GROUP = KVGroup((0, 2), 3, 6, 4)


def test_a_row_of_numbers_for_each_token_and_head():
    rows = (2, "num_blocks", 16, 3)
    shapes = {"keys": (*rows, 6), "values": (*rows, 4)}
    assert {pool.name: pool.shape for pool in LAYOUT.pools(GROUP, "bfloat16", 16)} == shapes
    pools = LAYOUT.pools(GROUP, "int8", 16)
    assert {pool.name: pool.shape for pool in pools} == shapes | {"key_scales": rows, "value_scales": rows}
    assert [pool.dtype for pool in pools] == ["int8", "int8", "float32", "float32"]


@pytest.mark.parametrize("lies", [LAYOUT, CPU], ids=["generic", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_contents_are_read_as_they_lie(lies, dtype):
    """Every number of the pools once, and shaped alike for all layouts."""
    pools = lies.pools(GROUP, dtype, 8)
    shapes = [tuple(5 if isinstance(size, str) else size for size in pool.shape) for pool in pools]
    arrays = [np.arange(np.prod(shape)).reshape(shape).astype(pool.dtype) for shape, pool in zip(shapes, pools, strict=True)]
    found = lies.read(arrays, 1)
    assert (found.keys.shape, found.values.shape) == ((5, 8, 3, 6), (5, 8, 3, 4))
    assert sorted(found.keys.ravel().tolist()) == sorted(arrays[0][1].ravel().tolist())
    assert sorted(found.values.ravel().tolist()) == sorted(arrays[1][1].ravel().tolist())
    keys, values = found.numbers()
    if dtype != "int8":
        assert found.key_steps is None and (keys == found.keys).all() and (values == found.values).all()
    else:
        assert found.key_steps.shape == found.value_steps.shape == (5, 8, 3)
        np.testing.assert_array_equal(keys, found.keys * found.key_steps[..., None].astype("float64"))


@pytest.mark.parametrize("lies", [LAYOUT, CPU], ids=["generic", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_latents_are_keys_and_values(lies, dtype):
    """Each token's row and scale once in the pools, and read as both."""
    pools = lies.pools(KVGroup((0, 2), 1, 6, 4, kind=LATENT), dtype, 8)
    shapes = [tuple(5 if isinstance(size, str) else size for size in pool.shape) for pool in pools]
    arrays = [np.arange(np.prod(shape)).reshape(shape).astype(pool.dtype) for shape, pool in zip(shapes, pools, strict=True)]
    found = lies.read(arrays, 1)
    assert len(pools) == 1 + (dtype == "int8") and found.keys.shape == (5, 8, 1, 6)
    assert found.keys is found.values and found.key_steps is found.value_steps
    np.testing.assert_array_equal(found.keys.reshape(40, 6), arrays[0][1].reshape(40, 6))
    if dtype == "int8":
        np.testing.assert_array_equal(found.key_steps.reshape(40), arrays[1][1].reshape(40))
