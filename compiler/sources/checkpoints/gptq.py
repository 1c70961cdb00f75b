"""GPTQ (arXiv:2210.17323) as AutoGPTQ and GPTQModel store it.

qweight i32 [K · bits / 32, N] holds each row of the weight as a column, from the lowest bits up; qzeros i32 [groups, N · bits / 32] holds
zeros alike, less 1 in the format "gptq" (wrapping around), as they are in "gptq_v2"; scales [groups, N]. g_idx i32 [K] says which group
a column is of: with `desc_act`, groups are not neighbours. A weight is scale · (code − zero).
https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import (
    column_order,
    floats,
    group_size_of,
    integer_tensor,
    integers,
    quantized,
    unpack,
)
from cupola.targets.formats.tensor import QuantizedTensor

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQReader:
    """Reads weights of GPTQ.

    Attributes:
        bits_of, group_size_of: by a module's name; None: what its tensors say.
        zero_offset: what stored zeros lack.
    """

    title: str
    bits_of: Callable[[str], int | None]
    group_size_of: Callable[[str], int | None]
    zero_offset: int
    marks: tuple[str, ...] = (".qweight",)
    parts: tuple[str, ...] = (".qweight", ".qzeros", ".scales", ".g_idx")
    beside: Mapping[str, str] = field(default_factory=dict)
    result: str = ".weight"

    def read(self, parts: Parts) -> LazyTensor:
        """The weight."""
        qweight, g_idx = parts.need(".qweight", ["I32"], [None, None]), parts.get(".g_idx")
        bits = self.bits_of(parts.name) or self._stated_bits(parts, qweight, g_idx)
        rows, n = qweight.shape
        k = rows * 32 // bits
        if rows * 32 % bits or n * bits % 32:
            raise parts.damaged(".qweight", f"has the shape {list(qweight.shape)}, which codes of {bits} bits don't fill")
        if g_idx is not None:
            parts.need(".g_idx", ["I32", "I64"], [k])
        scales = parts.need(".scales", FLOATS, [None, n])
        stated = self.group_size_of(parts.name)
        size = group_size_of(k, -(-k // scales.shape[0]) if stated is None else stated)
        groups = -(-k // size)
        parts.need(".scales", FLOATS, [groups, n])
        qzeros = parts.need(".qzeros", ["I32"], [groups, n * bits // 32])
        zeros = self._zeros(qzeros, bits)
        middle = 1 << bits - 1
        is_symmetric = bool((zeros == middle).all())
        form = integers(bits, size, scales, has_zeros=not is_symmetric)
        name, shape, kind = parts.name + self.result, (n, k), f"{self.title} of {bits} bits"
        order = None
        if g_idx is not None:
            found = g_idx.load()
            if found.min() < 0 or found.max() >= groups:
                raise parts.damaged(".g_idx", f"names groups up to {found.max()}, of {groups}")
            try:
                order = column_order(found, size)
            except ValueError:  # groups of several sizes
                return floats(name, shape, kind, lambda: _scattered(qweight, scales, zeros, found, bits))

        def blocks() -> QuantizedTensor:
            codes = unpack(np.ascontiguousarray(qweight.load().T), bits)
            codes = codes if order is None else codes[:, order]
            return integer_tensor(form, codes, scales.load().T, middle if is_symmetric else zeros.T)

        return quantized(name, shape, kind, form, blocks, order)

    def _stated_bits(self, parts: Parts, qweight: LazyTensor, g_idx: LazyTensor | None) -> int:
        bits = qweight.shape[0] * 32 // g_idx.shape[0] if g_idx is not None and g_idx.shape and g_idx.shape[0] else 0
        if bits not in BITS:
            raise parts.damaged(".qweight", "has no number of bits that its shape and g_idx agree on")
        return bits

    def _zeros(self, qzeros: LazyTensor, bits: int) -> Array:
        """[groups, N]."""
        zeros: Array = unpack(qzeros.load(), bits) + np.uint8(self.zero_offset) & np.uint8((1 << bits) - 1)
        return zeros


def _scattered(qweight: LazyTensor, scales: LazyTensor, zeros: Array, groups: Array, bits: int) -> Array:
    codes = unpack(np.ascontiguousarray(qweight.load().T), bits).astype(np.float32)
    values: Array = (codes - zeros.T[:, groups]) * scales.load().astype(np.float32).T[:, groups]
    return values


def _open(settings: Settings) -> GPTQReader:
    bits, size = settings.whole("bits", None, BITS), settings.group_size()
    version = settings.choice("checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    by_module = settings.record("dynamic")  # regular expressions -> other bits and group sizes: tensors tell them
    return GPTQReader(
        "GPTQ",
        lambda _: None if by_module else bits,
        lambda _: None if by_module else size,
        zero_offset=1 if version == "gptq" else 0,
    )


METHODS = (
    Method(
        "GPTQ",
        ("gptq",),
        _open,
        ("sym", "desc_act", "static_groups", "true_sequential", "damp_percent", "damp_auto_increment", "dataset", "model_seqlen",
         "tokenizer", "block_name_to_quantize", "module_name_preceding_first_block", "batch_size", "pad_token_id", "use_cuda_fp16",
         "use_exllama", "exllama_config", "max_input_length", "cache_block_outputs", "modules_in_block_to_quantize", "backend", "meta",
         "lm_head", "model_name_or_path", "model_file_base_name", "pack_dtype", "is_marlin_format", "act_group_aware", "format"),
    ),
)  # fmt: skip
