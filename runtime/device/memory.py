"""Divides a memory budget: K/V blocks, and swap space."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from cupola.runtime.artifact.arrays import num_bytes as tensor_bytes
from cupola.runtime.artifact.manifest import Manifest
from cupola.runtime.artifact.plan import Plan, num_bytes
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Device
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.errors import OptionError

DEFAULT_KV_MEMORY = "1GB"  # where it is the host's
UTILIZATION = 0.9  # of a GPU's memory
CHECKPOINTS = 8  # of recurrent states, for each sequence, where there is memory for them
_SHARE = "gpu_memory_utilization"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: int | str, field: str, *, lowest: int = 1) -> int:
    """A number of bytes from an integer or from text such as "1GB", "512 MiB" or "1.5GB". Raises OptionError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= lowest:
        return value
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)", value.strip(), re.ASCII)
        if found and found[2].upper() in _UNITS and (num_bytes := int(float(found[1]) * _UNITS[found[2].upper()])) >= lowest:
            return num_bytes
    raise OptionError(f"is {value!r:.60}", field=field, fix='give a size such as "1GB", "512MiB" or a number of bytes')


def check_utilization(share: float | None) -> None:
    """Raises OptionError for what is no share of a GPU's memory; None is the default."""
    if share is not None and not (isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1):
        raise OptionError(
            f"is {share!r:.60}, not above 0 and up to 1", field=_SHARE, fix=f"give one in that range; {UTILIZATION} is the default"
        )


def choose_kv_memory(
    manifest: Manifest, plan: Plan, device: Device, kv_memory: int | str | None, share: float | None, max_num_seqs: int, max_num_tokens: int
) -> int | str:
    """The memory for K/V pages: `kv_memory` or, on a device with memory of its own, what weights and the largest step leave of `share`.

    Args:
        share: of all the device's memory, for weights, K/V and a step's workspace together, as vLLM's `gpu_memory_utilization`; None is
            UTILIZATION, or what is free if that is less.

    Raises:
        OptionError: `share` is out of range, or too small, or more than is free; or the device's memory is the host's.
    """
    check_utilization(share)
    if device.shares_memory:
        if share is not None:
            raise OptionError(
                f"is {share}, and this target runs in the host's memory", field=_SHARE, fix="say with kv_memory how much to take"
            )
        return DEFAULT_KV_MEMORY if kv_memory is None else kv_memory
    total, free = device.total_memory(), device.memory_budget()
    wanted = int(total * (UTILIZATION if share is None else share))
    if share is not None and wanted > free:
        problem = f"is {share}, {wanted >> 20} MiB, and of {total >> 20} MiB {free >> 20} are free"
        raise OptionError(problem, field=_SHARE, fix="give less, or end what takes the rest")
    left = min(wanted, free) - bytes_beside(manifest, plan, max_num_seqs, max_num_tokens)
    if left < manifest.kv.bytes_per_block:
        problem = f"leaves {left >> 20} MiB for K/V beside the weights and a step of {max_num_tokens} tokens"
        raise OptionError(problem, field=_SHARE, fix="give more, or fewer tokens in a step")
    if kv_memory is None:
        return min(left, device.largest_tensor())  # so that each of K and V is one
    if (asked := parse_bytes(kv_memory, "kv_memory")) > left:
        raise OptionError(f"is {asked >> 20} MiB, and {_SHARE} leaves {left >> 20}", field="kv_memory", fix="give less, or a larger share")
    return kv_memory


def bytes_beside(manifest: Manifest, plan: Plan, max_num_seqs: int, max_num_tokens: int) -> int:
    """Bytes that a device holds beside K/V: the weights, and what the largest step takes in, gives out and holds in between."""
    num_blocks, rows = -(-manifest.model.context_length // manifest.kv.block_size), min(max_num_seqs, max_num_tokens)
    known = {"n": max_num_tokens, "b": rows, "r": rows}
    sizes = {name: known.get(name, num_blocks) for name in plan.dims}
    counted = {*(weight.name for weight in manifest.weights), *(pool.name for pool in manifest.kv.pools(0))}
    step = sum(num_bytes(tensor, sizes) for tensor in manifest.function("forward").inputs if tensor.name not in counted)
    return sum(tensor_bytes(weight.dtype, weight.shape) for weight in manifest.weights) + step + plan.layout(sizes)[1]


def choose_num_blocks(kv: KVSpec, kv_memory: int | str, most: Sequence[int], max_num_seqs: int) -> tuple[int, ...]:
    """The blocks of each group that fit into `kv_memory`, if the longest sequence holds `most` of them at a time.

    First, one sequence gets as long as it can: all groups have the same number of blocks, but none more than its `most`. What is left lets
    all groups grow to the same number again, but none to more than `max_num_seqs` such sequences hold. So a group with a window has what
    sequences can use of it, and the rest goes to those that keep everything.

    Raises:
        OptionError: if the size is malformed or holds not even one block of each.
    """
    num_blocks = _split(kv, parse_bytes(kv_memory, "kv_memory"), most, max_num_seqs)
    if num_blocks is None:
        lowest = kv.bytes_per_block
        raise OptionError(f"is {kv_memory!r}, less than one block", field="kv_memory", fix=f"give at least {lowest} bytes")
    return num_blocks


def _split(kv: KVSpec, num_bytes: int, most: Sequence[int], max_num_seqs: int) -> tuple[int, ...] | None:
    """As many blocks of each group as there is memory for, where one sequence holds `most`; None if that is not one of each.

    Of a recurrent group there may be some more: CHECKPOINTS for each sequence.
    """
    sizes, longest = [kv.group_bytes_per_block(i) for i in range(len(kv.groups))], max(most)
    limits = [max_num_seqs * (count + CHECKPOINTS * (i == kv.recurrent)) for i, count in enumerate(most)]

    def blocks(step: int) -> tuple[int, ...]:
        if step <= longest:
            return tuple(min(step, count) for count in most)
        return tuple(min(max(count, step - longest), limit) for count, limit in zip(most, limits, strict=True))

    def needed(step: int) -> int:
        return sum(size * count for size, count in zip(sizes, blocks(step), strict=True))

    found = bisect_right(range(longest + max(longest, *limits) + 1), num_bytes, key=needed) - 1
    return blocks(found) if found else None


def check_budget(kv: KVSpec, num_blocks: Sequence[int], memory_budget: int) -> None:
    """Raises OptionError if so many blocks of each group take more memory than a device has."""
    num_bytes = kv.num_bytes(num_blocks)
    if num_bytes > memory_budget:
        problem = f"gives blocks of {num_bytes >> 20} MiB, and there is memory of {memory_budget >> 20}"
        raise OptionError(problem, field="kv_memory", fix="give less")


def make_swap_space(kv: KVSpec, swap_memory: int | str, swap_folder: str | Path | None, most: Sequence[int]) -> SwapSpace:
    """The swap space that `swap_memory` bytes give, in a file in `swap_folder` or in memory, for sequences that hold up to `most` blocks.

    Raises:
        OptionError: if the size is malformed or the memory can't be had.
    """
    num_bytes = parse_bytes(swap_memory, "swap_memory", lowest=0)
    num_seqs = -(-num_bytes // kv.num_bytes(most))
    num_blocks = _split(kv, num_bytes, most, max(1, num_seqs))
    if num_bytes and num_blocks is None:
        problem = f"is {swap_memory!r}, less than one block"
        raise OptionError(problem, field="swap_memory", fix=f"give at least {kv.bytes_per_block} bytes, or 0")
    if swap_folder is not None and not num_bytes:
        raise OptionError("is of no use without swap_memory", field="swap_folder", fix="say with swap_memory how much it may hold")
    return SwapSpace(kv, num_blocks or (0,) * len(kv.groups), None if swap_folder is None else Path(swap_folder))
