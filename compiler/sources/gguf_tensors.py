"""The tensors of a GGUF file by the model's names, in the model's arrangement: what llama.cpp's converter changed is undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_architectures import Architecture, Names
from cupola.compiler.sources.gguf_facts import Facts
from cupola.compiler.sources.gguf_header import RECONVERT, USE_CHECKPOINT, GGUFHeader, TensorInfo
from cupola.runtime.errors import SourceError, UnsupportedError

_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,5})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def part_of(name: str) -> str:
    """The part that a tensor belongs to: `attn_q` of `blk.0.attn_q.weight`; "" for a name of another form."""
    match = _NAME.fullmatch(name)
    return match["part"] if match else ""


def transformers_name(name: str, names: Names) -> str | None:
    """The transformers name of a tensor, or None if an architecture's `names` have none for it."""
    match = _NAME.fullmatch(name)
    target = names.get(match["part"]) if match else None
    if match is None or target is None or ("{}" in target) != (match["layer"] is not None):
        return None
    return f"{target.format(match['layer'])}.{match['kind']}"


def _interleaved(heads: int, facts: Facts) -> Array:
    """Halves of each head interleaved: llama.cpp rotates neighbours (0, 1), (2, 3), …; transformers (0, d/2), (1, d/2 + 1), …"""
    order: Array = np.arange(heads * facts.head_dim).reshape(heads, facts.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _joined(facts: Facts) -> Array:
    """q, k and v of all heads one after another in the file; of each head together in the model."""
    order: Array = np.arange(3 * facts.num_heads * facts.head_dim).reshape(3, facts.num_heads, facts.head_dim).swapaxes(0, 1).reshape(-1)
    return order


def _grouped(facts: Facts) -> Array:
    """All q, then k, then v in the file; the q of each K/V head, its k and its v together in the model."""
    q, groups = facts.num_heads, facts.num_kv_heads
    heads = np.arange(q + 2 * groups)
    by_group = np.concatenate((heads[:q].reshape(groups, -1), heads[q : q + groups, None], heads[q + groups :, None]), axis=1)
    order: Array = (by_group.reshape(-1, 1) * facts.head_dim + np.arange(facts.head_dim)).reshape(-1)
    return order


ROW_ORDERS: Mapping[str, Callable[[Facts], Array]] = {
    "rotated q": lambda facts: _interleaved(facts.num_heads, facts),
    "rotated k": lambda facts: _interleaved(facts.num_kv_heads, facts),
    "joined qkv": _joined,
    "falcon qkv": _grouped,
}
"""By how the converter moved rows: which row of the file is each row of the model. Blocks of weights lie along rows, and move with them."""


def row_order(info: TensorInfo, architecture: Architecture, facts: Facts, header: GGUFHeader) -> Array | None:
    """Which row of the file is each row of the model's tensor; None for the same order.

    Raises:
        SourceError: the rows don't fill the heads.
    """
    kind = architecture.rows.get(part_of(info.name))
    if kind is None:
        return None
    if facts.num_kv_heads < 1 or facts.num_heads % facts.num_kv_heads:
        problem = f"{facts.num_kv_heads} do not divide the {facts.num_heads} attention heads"
        facts.read.fail("attention.head_count_kv", problem)
    order = ROW_ORDERS[kind](facts)
    if len(order) != info.shape[0]:
        wanted = f"{len(order) // facts.head_dim} heads of {facts.head_dim}"
        raise SourceError(f"has {info.shape[0]} rows, not {wanted}", file=header.path, field=info.name, fix=RECONVERT)
    return order


def without_name(header: GGUFHeader, architecture: Architecture, names: Names) -> tuple[str, ...]:
    """Tensors that the model has no name for, and that no configuration is made of, for a note.

    Raises:
        UnsupportedError: one that the format knows, which would change what the model computes.
    """
    unknown = [info.name for info in header.tensors if transformers_name(info.name, names) is None and info.name not in _FACTORS]
    for name in unknown:
        match = _NAME.fullmatch(name)
        if match and match["part"] in _known_parts():
            problem = f"is a part that {architecture.model_class} does not have here"
            raise UnsupportedError(problem, file=header.path, field=name, fix=USE_CHECKPOINT)
    return tuple(unknown)


@cache
def _known_parts() -> frozenset[str]:
    """The parts that the gguf package knows of any architecture."""
    from gguf.constants import TENSOR_NAMES

    return frozenset(name.removeprefix("blk.{bid}.") for name in TENSOR_NAMES.values())
