"""The parts of a library's signature: tensors, functions, kernels and weights. Dtypes are numpy's names plus `bfloat16`.

A symbolic dimension is a string, such as `"n"`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

E4M3 = "float8_e4m3fn"  # numpy's name of it; tensors hold its bits as uint8
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, E4M3: 1, "int64": 8, "int32": 4, "uint32": 4, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a compiled function; a string in `shape` is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of a tensor whose dimensions are all known."""
        return math.prod(int(size) for size in self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class FunctionSpec:
    """A compiled function: its inputs in call order (weights last), its outputs, and what its intermediate results take."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bytes_per_token: int = 0
    bytes_per_logit_row: int = 0
    bytes_per_block: int = 0  # of those that sequences may have


@dataclass(frozen=True)
class WeightSpec:
    """One weight: its place in a shard, in bytes from the start of the file.

    `storage` says, for people, how the weight that it is part of is stored: 4 bits, float32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    storage: str = ""


@dataclass(frozen=True)
class KernelCost:
    """The cost of a kernel's call that the shapes of its arguments do not tell. A multiply-add is two operations.

    Attributes:
        arithmetic: what is multiplied, such as "float32" or "int8": which of the machine's peaks the kernel is held to.
        operations_per_row: rows are those of the result.
        operations_per_pair: of a query and a key that it sees.
        window: how many of the latest keys a query sees; 0 is all.
        gathered_bytes_per_row: how much of its largest arguments is read a row.
        num_gathered: how many those are; of 0, all arguments are read whole.
    """

    arithmetic: str = "float32"
    operations_per_row: int = 0
    operations_per_pair: int = 0
    window: int = 0
    gathered_bytes_per_row: int = 0
    num_gathered: int = 0


@dataclass(frozen=True)
class KernelSpec:
    """A kernel of the library, for those who look inside and measure.

    Attributes:
        launches: of a kernel with threads, the blocks of each launch, over its sizes in the plan; one without blocks is not launched.
    """

    name: str
    cost: KernelCost = KernelCost()
    launches: tuple[int | str, ...] = ()
