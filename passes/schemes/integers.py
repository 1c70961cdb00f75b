"""w4a8, w4a16, w8a8 and w8a16: weights of 4 or 8 bits in groups, each with a float16 scale and perhaps a min.

The embedding and the vocabulary projection, which suffer most, get 8 bits unless they come in fewer. So do ggml's types of more than 5
bits, which 4 would spoil. Of groups of 32, ggml's blocks are kept.
"""

from __future__ import annotations

from dataclasses import replace

from cupola.passes.schemes.base import Choice, Scheme, Storage
from cupola.targets.formats.format import WeightFormat, ZeroPoint
from cupola.targets.formats.ggml import GGML_FORMATS

DEFAULT_GROUP = 32  # of ggml's blocks too: the one that names of schemes leave out
ACTIVATION_GROUP = 32  # activations that share a scale, whatever weights have: groups of 64 lose a fifth more, in perplexity
# By bits and zero point: ggml's types that are not exactly such codes in groups of 32, but not to be stored in fewer bits.
_NEAR: dict[tuple[int, ZeroPoint], tuple[str, ...]] = {(4, "mins"): ("Q4_K",), (8, "none"): ("Q5_1", "Q5_K", "Q6_K")}


def storage(format: WeightFormat, weighted: bool = False) -> Storage:
    """How a weight is stored in a format."""
    of_default, default = replace(format, group_size=DEFAULT_GROUP), format.group_size == DEFAULT_GROUP
    holds = tuple(name for name, blocks in GGML_FORMATS.items() if blocks.fits(format))
    nears: tuple[str, ...] = ()
    if not format.super_size and not format.table:
        others = () if default else tuple(name for name, blocks in GGML_FORMATS.items() if blocks.fits(of_default))
        nears = others + _NEAR.get((format.bits, format.zero_point), ())
    return Storage(_described(format), format.code_dtype, format, weighted, holds, nears)


def _described(format: WeightFormat) -> str:
    size = format.group_size
    parts = [
        format.table.upper() or f"{format.bits} bits",
        "with mins" * format.has_mins,
        "with zeros" * format.has_zeros,
    ]
    parts += [f"in groups of {size}" * (size != DEFAULT_GROUP), f"in super-blocks of {format.super_size}" * bool(format.super_size)]
    return " ".join(filter(None, parts))


def embedding_choice(bits: int, group_size: int) -> Choice:
    """An embedding of 4 or 8 bits, whatever it comes in."""
    w4, w4_mins, w8 = _storages(group_size)
    if bits == 8:
        return Choice(w8, (w8,))
    assert w4.format is not None
    return Choice(storage(w4.format, weighted=True), (w4, w4_mins))


def integer_schemes(group_size: int) -> tuple[Scheme, ...]:
    """The schemes whose weights have groups of that size."""
    w4, w4_mins, w8 = _storages(group_size)
    in_w8, keeps = Choice(w8, (w8,)), (w4, w4_mins, w8)
    choices = {8: (in_w8, in_w8), 4: (Choice(w4, keeps), Choice(w8, keeps))}
    suffix = "" if group_size == DEFAULT_GROUP else f"-g{group_size}"
    activations = {8: ("quantized to 8 bits", "bf16", ACTIVATION_GROUP), 16: ("as they are", "f16", 0)}

    def scheme(bits: int, x_bits: int) -> Scheme:
        linear, embedding = choices[bits]
        how, kv_dtype, quantize_x = activations[x_bits]
        description = f"weights of {bits} bits in groups of {group_size}, activations {how}"
        return Scheme(f"w{bits}a{x_bits}{suffix}", description, linear, embedding, kv_dtype, group_size, quantize_x, keeps_bits=bits)

    return tuple(scheme(bits, x_bits) for bits in choices for x_bits in activations)


def _storages(group_size: int) -> tuple[Storage, Storage, Storage]:
    """4 bits, 4 bits with mins, 8 bits."""
    w4, w4_mins, w8 = WeightFormat(4, group_size), WeightFormat(4, group_size, zero_point="mins"), WeightFormat(8, group_size)
    return storage(w4), storage(w4_mins), storage(w8)
