"""How a target lays the K/V of a group of layers out in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.state import KVGroup
from cupola.runtime.artifact.tensors import TensorSpec

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class StateContents:
    """The keys and values in the blocks of one layer, [blocks, tokens, heads, dim], as the pools have them.

    Attributes:
        key_steps: [blocks, tokens, heads]: what keys are multiples of where they are codes, else None; `value_steps` is of values.
    """

    keys: Array
    values: Array
    key_steps: Array | None = None
    value_steps: Array | None = None

    def numbers(self) -> tuple[Array, Array]:
        """Keys and values as real numbers."""
        return _scaled(self.keys, self.key_steps), _scaled(self.values, self.value_steps)


@dataclass(frozen=True)
class StateLayout:
    """A layout.

    Attributes:
        pools: the memory of a group, (group, dtype, tokens a block) -> tensors; raises UnsupportedError for what it can't hold.
        read: what the pools of a group hold of one layer, (arrays, layer) -> contents. Tests ask it.
    """

    pools: Callable[[KVGroup, str, int], tuple[TensorSpec, ...]]
    read: Callable[[Sequence[Array], int], StateContents]


def _scaled(codes: Array, steps: Array | None) -> Array:
    numbers = codes.astype(np.float64)
    return numbers if steps is None else numbers * steps[..., None].astype(np.float64)
