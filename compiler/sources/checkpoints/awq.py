"""AWQ (arXiv:2306.00978) as AutoAWQ stores it, in its layout "gemm".

qweight i32 [K, N / 8] and qzeros i32 [groups, N / 8] hold eight columns a word, in the order 0, 2, 4, 6, 1, 3, 5, 7; scales [groups, N].
A weight is scale · (code − zero).
https://github.com/casper-hansen/AutoAWQ/blob/main/awq/utils/packing_utils.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import group_size_of, integer_tensor, integers, quantized, unpack
from cupola.targets.formats.tensor import QuantizedTensor

_BITS, _PER_WORD = 4, 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the columns of a word


@dataclass(frozen=True)
class AWQReader:
    """Reads weights of AWQ."""

    title: str
    group_size: int
    marks: tuple[str, ...] = (".qweight",)
    parts: tuple[str, ...] = (".qweight", ".qzeros", ".scales")
    beside: Mapping[str, str] = field(default_factory=dict)
    result: str = ".weight"

    def read(self, parts: Parts) -> LazyTensor:
        """The weight."""
        qweight = parts.need(".qweight", ["I32"], [None, None])
        k, n = qweight.shape[0], qweight.shape[1] * _PER_WORD
        size = group_size_of(k, self.group_size)
        groups = -(-k // size)
        scales = parts.need(".scales", FLOATS, [groups, n])
        zeros = _columns(parts.need(".qzeros", ["I32"], [groups, n // _PER_WORD]))
        middle = 1 << _BITS - 1
        is_symmetric = bool((zeros == middle).all())
        form = integers(_BITS, size, scales, has_zeros=not is_symmetric)

        def blocks() -> QuantizedTensor:
            return integer_tensor(form, _columns(qweight).T, scales.load().T, middle if is_symmetric else zeros.T)

        return quantized(parts.name + self.result, (n, k), f"{self.title} of {_BITS} bits", form, blocks)


def _columns(words: LazyTensor) -> Array:
    """i32 [rows, N / 8] -> u8 [rows, N]."""
    codes = unpack(words.load(), _BITS).reshape(words.shape[0], -1, _PER_WORD)
    return np.ascontiguousarray(codes[:, :, _PLACES]).reshape(words.shape[0], -1)


def _open(settings: Settings) -> AWQReader:
    settings.whole("bits", _BITS, (_BITS,))
    settings.choice("version", "gemm", ("gemm", "exllama", "ipex"))  # the latter two are ways to run the first
    return AWQReader("AWQ", settings.group_size())


METHODS = (
    Method(
        "AWQ",
        ("awq",),
        _open,
        ("zero_point", "backend", "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "sym",
         "pack_method"),
        {".act.scales": "divides activations"},
    ),
)  # fmt: skip
