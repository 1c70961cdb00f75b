"""Reads from a traced module what state it keeps: its K/V cache, and the states of recurrences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tvm import IRModule

from cupola.passes.keep_latents import keep_latents
from cupola.passes.rewrite import shape_of
from cupola.runtime.artifact.state import ATTENTION, LATENT, NUM_BLOCKS, RECURRENT, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import E4M3, TensorSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets import ops

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "int8": "int8", "fp8": E4M3}
"""What K and V may be stored as, by the option's values."""


def kv_layout(mod: IRModule, dtype: str, block_size: int, file: str) -> KVSpec:
    """One group for all layers with the same heads, dimensions, window and kind, in the order of their first layers, without pools; and
    last one for all recurrences, if there are any, with a pool for each kind and shape of states.

    Raises:
        UnsupportedError: two attentions claim the same layer, or heads do not group; `file` is for the message.
    """
    layers: dict[tuple[int, int, int, int, str], list[int]] = defaultdict(list)
    states: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for block in mod["forward"].body.blocks:
        for binding in block.bindings:
            marker = ops.Attention.match(binding.value)
            if marker is not None:
                (_, num_heads, _), (_, num_kv_heads, key_dim) = shape_of(marker.q), shape_of(marker.k)
                if num_heads % num_kv_heads:
                    problem = f"{num_heads} query heads do not divide into {num_kv_heads} K/V heads"
                    raise UnsupportedError(problem, file=file, field=f"layer {marker.layer}")
                value_dim, kind = shape_of(binding.value)[2], LATENT if marker.v is None else ATTENTION
                layers[num_kv_heads, key_dim, value_dim, marker.window, kind].append(marker.layer)
            recurrence = ops.match_recurrence(binding.value)
            if recurrence is not None:
                states[recurrence.name, recurrence.state_shape].append(recurrence.layer)
    every = [layer for group in (*layers.values(), *states.values()) for layer in group]
    if len(set(every)) != len(every):
        raise UnsupportedError("some layers hold more than one attention", file=file, fix="only one K/V cache a layer is known")
    groups = tuple(
        KVGroup(tuple(group), heads, key, value, window, kind=kind) for (heads, key, value, window, kind), group in layers.items()
    )
    return KVSpec((*groups, *_recurrent_group(states)), dtype, block_size)


def expanded_notes(mod: IRModule, kv: KVSpec, file: str) -> list[str]:
    """For people: what the K/V cache of `mod` takes beside that of rows for all heads, where it was to be without (`keep_latents`)."""
    rows = kv_layout(keep_latents()(mod), kv.dtype, kv.block_size, file)
    kept, least = (sum(len(group.layers) * group.numbers_per_token for group in spec.paged) for spec in (kv, rows))
    problem = f"a token takes {kept} numbers of K and V in place of {least}: the target has no kernels for latent attention"
    return [problem] if least < kept else []


def _recurrent_group(states: Mapping[tuple[str, tuple[int, ...]], list[int]]) -> list[KVGroup]:
    pools = tuple(
        TensorSpec(f"{kind}_{'x'.join(map(str, shape))}", "float32", (len(layers), NUM_BLOCKS, *shape))
        for (kind, shape), layers in states.items()
    )
    every = tuple(layer for layers in states.values() for layer in layers)
    return [KVGroup(every, 0, 0, 0, 0, pools, RECURRENT)] if every else []
