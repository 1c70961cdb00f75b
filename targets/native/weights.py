"""Functions on weights in C, compiled for the machine that compiles the model. Several threads may run them at once.

What takes and gives numpy arrays elsewhere calls these where numpy goes over memory many times.
"""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.native.link import compiler_for
from cupola.targets.native.systems import this_system

Array = npt.NDArray[Any]
_SOURCE = Path(__file__).with_name("weights.c")
# Sums are the same on every machine: nothing is contracted to multiply-adds.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-g0")
_INT = ctypes.c_int64
MAX_GROUP = 1024  # values, as in the source


@cache
def _library() -> ctypes.CDLL:
    """The functions, compiled once a process.

    Raises:
        UnsupportedError: there is no C compiler on this machine, or it fails.
    """
    command = compiler_for(this_system(), here())
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.so"
        done = subprocess.run([*command, *_FLAGS, "-o", str(file), str(_SOURCE), "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            problem = f"can't compile functions on weights: {(done.stderr.strip().splitlines() or ['without a message'])[0]}"
            raise UnsupportedError(problem, field=command[0], fix="is there room on the disk, and a working C compiler?")
        return ctypes.CDLL(str(file))


def _at(array: Array) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def unpack_nibbles(blocks: Array, start: int) -> Array:
    """uint8 [rows, blocks, bytes] -> codes [rows, 32 · blocks]: of 16 bytes from `start` on first the low halves, then the high ones."""
    blocks = np.ascontiguousarray(blocks)
    num_rows, count, size = blocks.shape
    codes = np.empty((num_rows, 32 * count), np.uint8)
    _library().unpack_nibbles(_at(blocks), _INT(num_rows * count), _INT(size), _INT(start), _at(codes))
    return codes


def pack_codes(codes: Array, order: Array, bits: int, block_size: int, step: int, out: Array) -> None:
    """Codes [N, K], one a byte, into the panels `out`, uint8 [panels, blocks, bytes]: as `targets.cpu.linear.quantized_packing` has them.

    `order`, int64 [32 · panels], has the row of each column of the panels, or -1: zeros. `block_size` is the format's: inputs of a block;
    `step`, bytes from a slice of 32 inputs to the next one of its block.
    """
    codes = np.ascontiguousarray(codes).view(np.uint8)
    sizes = (len(out), codes.shape[1], bits, block_size // 32, out.shape[2], step)
    assert len(order) == 32 * len(out) and order.max() < len(codes)
    _library().pack_codes(_at(codes), _at(order), *map(_INT, sizes), _at(out))


def pack_factors(factors: Array, order: Array, start: int, together: int, step: int, out: Array) -> None:
    """Factors [N, numbers of a row] into `out` as `pack_codes` has it, from byte `start` of a block on: for each number 32 columns, of
    so many `together`, and after `step` bytes from their beginning of the next ones; all together if it is 0."""
    factors = np.ascontiguousarray(factors)
    panels, blocks, size = out.shape
    parts = factors.shape[1] // blocks
    sizes = (factors.itemsize, panels, blocks, parts, together if step else parts, step, size)
    assert len(order) == 32 * panels and order.max() < len(factors)
    _library().pack_factors(_at(factors), _at(order), *map(_INT, sizes), ctypes.c_void_p(out.ctypes.data + start))


def encode_w4(groups: Array, divisors: Array, weighted: bool) -> tuple[Array, Array]:
    """f32 [groups, size] -> codes 0..15 and float16 scales, for scale · (code − 8), of least squared error among those that are tried.

    Scales are tried that the value of largest magnitude is so many (`divisors`, f32) steps of; each is improved to the best one for
    its codes. Where it is `weighted`, errors count by the value's square and the group's mean square.
    """
    groups = np.ascontiguousarray(groups, np.float32)
    num_groups, size = groups.shape
    assert size <= MAX_GROUP
    codes, scales = np.empty(groups.shape, np.uint8), np.empty(num_groups, np.float32)
    counts = (_INT(num_groups), _INT(size)), (_INT(len(divisors)), _INT(weighted))
    _library().encode_w4(_at(groups), *counts[0], _at(divisors), *counts[1], _at(codes), _at(scales))
    return codes, scales.astype(np.float16)
