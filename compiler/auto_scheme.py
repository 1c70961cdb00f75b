"""`quant="auto"`: the scheme that serves a source best on a target, and why.

The blocks of a GGUF file are kept if the target has kernels for them.
"""

from __future__ import annotations

import math
from collections import Counter

from cupola.compiler.sources import Source
from cupola.targets.base import Target

# How ggml's types of up to five bits a weight begin.
_FOUR_BITS = ("Q1", "Q2", "Q3", "Q4", "IQ", "TQ", "MXFP4", "NVFP4")
# By whether most of the source's weights have so few bits, and whether the target multiplies integers of 8 bits fast.
# Without such products weights are widened to float32 as they are read, which bfloat16 makes cheapest.
_SCHEMES = {(True, True): "w4a8", (False, True): "w8a8", (True, False): "bf16", (False, False): "bf16"}


def choose_scheme(quant: str, source: Source, target: Target) -> tuple[str, tuple[str, ...]]:
    """The name of the scheme that `quant` asks for, and notes: why it was chosen, if it was."""
    if quant != "auto":
        return quant, ()
    if source.quantized_by:
        has_few = any(tensor.format is not None and tensor.format.bits <= 4 for tensor in source.tensors.values())
        name = "keep-a16" if target.abilities.keeps_blocks else "w4a16" if has_few else "w8a16"
        return name, (f"quant auto is {name} here: the checkpoint's weights come quantized by {source.quantized_by}",)
    if target.abilities.keeps_blocks and any(tensor.format is not None for tensor in source.tensors.values()):
        name = "keep-a8" if target.abilities.multiplies_int8 else "keep-a16"
        return name, (f"quant auto is {name} here: the file's weights are quantized, and {target.spec.name} multiplies them as they are",)
    counts: Counter[str] = Counter()
    for tensor in source.tensors.values():
        counts[tensor.stored_as] += math.prod(tensor.shape) if len(tensor.shape) > 1 else 0
    kind = max(counts, key=lambda name: counts[name], default="")
    name = _SCHEMES[kind.startswith(_FOUR_BITS), target.abilities.multiplies_int8]
    does = "multiplies" if target.abilities.multiplies_int8 else "has no fast way to multiply"
    return name, (f"quant auto is {name} here: most weights come in {kind}, and {target.spec.name} {does} integers of 8 bits",)
