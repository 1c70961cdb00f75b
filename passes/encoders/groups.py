"""The loop that encodes a weight group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = tuple[Array, ...]
_CHUNK = 1 << 16  # values encoded at a time: what they need of temporary arrays stays in cache


def encode_groups(weight: Array, group_size: int, encode: Callable[[Array], Parts]) -> Parts:
    """Codes, scales and mins of a weight [N, K], whose rows are padded with zeros to whole groups, a few rows at a time.

    `encode` takes f32 [groups, group size] and gives codes of that shape, then scales and perhaps mins, [groups].
    """
    num_rows, width = weight.shape
    padded = -(-width // group_size) * group_size
    step = max(1, _CHUNK // padded)
    pieces = []
    # A weight that is no number, or too large for float16, is not for numpy to warn about here.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for start in range(0, num_rows, step):
            rows = weight[start : start + step].astype(np.float32, copy=False)
            rows = rows if padded == width else np.pad(rows, ((0, 0), (0, padded - width)))
            parts = encode(rows.reshape(-1, group_size))
            pieces.append([part.reshape(len(rows), -1) for part in parts])
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
