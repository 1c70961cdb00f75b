"""K and V as the operations speak of them: a row of numbers for each token and head, and for int8 its scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cupola.runtime.artifact.state import LATENT, NUM_BLOCKS, KVGroup
from cupola.runtime.artifact.tensors import E4M3, TensorSpec
from cupola.targets.formats.tables import TABLES
from cupola.targets.state import Array, StateContents, StateLayout


def state_pools(group: KVGroup, dtype: str, block_size: int) -> tuple[TensorSpec, ...]:
    """`keys` and `values`, [layers, blocks, tokens, heads, dim], of E4M3 its bits, and of int8 `key_scales` and `value_scales`,
    without the last axis. A latent group has no values."""
    rows: tuple[int | str, ...] = (len(group.layers), NUM_BLOCKS, block_size, group.num_kv_heads)
    held = "uint8" if dtype == E4M3 else dtype
    dims = {"key": group.key_dim} if group.kind == LATENT else {"key": group.key_dim, "value": group.value_dim}
    pools = (TensorSpec(f"{name}s", held, (*rows, dim)) for name, dim in dims.items())
    scales = (TensorSpec(f"{name}_scales", "float32", rows) for name in dims)
    return (*pools, *(scales if dtype == "int8" else ()))


def read_state(pools: Sequence[Array], layer: int) -> StateContents:
    """The pools' contents, which lie as tests want them; of a latent group the keys are the values, too."""
    contents = [_E4M3[pool[layer]] if pool.dtype == np.uint8 else pool[layer] for pool in pools]
    has_values = len(contents) == 4 or (len(contents) == 2 and contents[1].ndim == 4)
    return StateContents(*(contents if has_values else [each for each in contents for _ in "kv"]))


_E4M3 = np.array(TABLES["e4m3"])
LAYOUT = StateLayout(state_pools, read_state)
