"""What a memory budget gives: K/V blocks, and room to put them aside."""

from __future__ import annotations

import re
from pathlib import Path

from cupola.runtime.artifact.manifest import Manifest
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.errors import OptionError

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


def choose_num_blocks(manifest: Manifest, kv_memory: int | str, max_num_seqs: int) -> int:
    """The blocks that fit into `kv_memory`, but no more than `max_num_seqs` full contexts can use.

    Raises:
        OptionError: if the size is malformed or holds not even one block.
    """
    kv = manifest.kv
    num_blocks = parse_bytes(kv_memory, "kv_memory") // kv.bytes_per_block
    if num_blocks == 0:
        raise OptionError(f"is {kv_memory!r}, less than one block", field="kv_memory", fix=f"give at least {kv.bytes_per_block} bytes")
    return min(num_blocks, max_num_seqs * -(-manifest.model.context_length // kv.block_size))


def make_swap_space(manifest: Manifest, swap_memory: int | str, swap_folder: str | Path | None) -> SwapSpace:
    """The swap space that `swap_memory` bytes give, in a file in `swap_folder` or in memory.

    Raises:
        OptionError: if the size is malformed or the memory can't be had.
    """
    num_bytes, block_bytes = parse_bytes(swap_memory, "swap_memory", lowest=0), manifest.kv.bytes_per_block
    if 0 < num_bytes < block_bytes:
        raise OptionError(f"is {swap_memory!r}, less than one block", field="swap_memory", fix=f"give at least {block_bytes} bytes, or 0")
    if swap_folder is not None and not num_bytes:
        raise OptionError("is of no use without swap_memory", field="swap_folder", fix="say with swap_memory how much it may hold")
    return SwapSpace(manifest.kv, num_bytes // block_bytes, None if swap_folder is None else Path(swap_folder))
