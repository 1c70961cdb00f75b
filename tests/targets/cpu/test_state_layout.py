from __future__ import annotations

import numpy as np
import pytest

from cupola.runtime.artifact.state import LATENT, KVGroup
from cupola.runtime.errors import UnsupportedError
from cupola.targets.cpu.isa import ISAS
from cupola.targets.cpu.state_layout import layout, side_of, state_pools


def test_keys_are_transposed_and_values_are_not():
    shapes = {pool.name: (pool.dtype, pool.shape) for pool in state_pools(KVGroup((0, 2), 3, 64, 32), "bfloat16", 16)}
    assert shapes == {"k_pages": ("bfloat16", (2, "num_blocks", 3, 64, 16)), "v_pages": ("bfloat16", (2, "num_blocks", 3, 16, 32))}


def test_pages_of_int8_hold_pairs_and_have_scales():
    shapes = {pool.name: (pool.dtype, pool.shape) for pool in state_pools(KVGroup((0, 2), 3, 64, 32), "int8", 16)}
    scales = ("float32", (2, "num_blocks", 3, 16))
    pages = {"k_pages": ("int8", (2, "num_blocks", 3, 32, 32)), "v_pages": ("int8", (2, "num_blocks", 3, 8, 64))}
    assert shapes == pages | {"k_scales": scales, "v_scales": scales}


def test_pairs_of_bfloat16_take_the_memory_that_numbers_alone_take():
    isa = next(isa for isa in ISAS if isa.bf16_dot)
    assert [side_of(isa, "bfloat16", *sizes) for sizes in ((64, 16), (5, 16), (64, 7))] == [2, 1, 1]
    group, random = KVGroup((0,), 3, 6, 4), np.random.default_rng(0)
    shapes = [tuple(2 if isinstance(size, str) else size for size in pool.shape) for pool in state_pools(group, "bfloat16", 8)]
    keys, values = (random.standard_normal(shape).astype("bfloat16") for shape in shapes)
    found = layout(isa).read([keys, values], 0)
    for token, dim in ((0, 0), (0, 1), (5, 4), (7, 3)):
        assert (found.keys[:, token, :, dim] == keys[0].reshape(2, 3, 3, 8, 2)[:, :, dim // 2, token, dim % 2]).all()
    for token, dim in ((0, 0), (1, 0), (6, 2), (7, 3)):
        assert (found.values[:, token, :, dim] == values[0].reshape(2, 3, 4, 4, 2)[:, :, token // 2, dim, token % 2]).all()


def test_rows_of_latents_are_stored_once_and_as_they_are():
    group = KVGroup((0, 2), 1, 24, 16, kind=LATENT)
    (rows,) = state_pools(group, "bfloat16", 16)
    assert (rows.name, rows.dtype, rows.shape) == ("latents", "bfloat16", (2, "num_blocks", 1, 16, 24))
    rows, scales = state_pools(group, "int8", 16)
    assert (rows.dtype, rows.shape, scales.shape) == ("int8", (2, "num_blocks", 1, 16, 24), (2, "num_blocks", 1, 16))


def test_what_has_no_pairs_is_refused_in_int8():
    odd = KVGroup((3,), 2, 5, 5)
    assert state_pools(odd, "bfloat16", 1)
    with pytest.raises(UnsupportedError, match="layer 3: int8 takes dimensions of keys by pairs, and heads have 5"):
        state_pools(odd, "int8", 16)
    with pytest.raises(UnsupportedError, match="block-size: is 1, and int8 takes tokens by pairs"):
        state_pools(KVGroup((0,), 2, 6, 5), "int8", 1)
