"""The quantization schemes by name, and the ways to store an embedding."""

from __future__ import annotations

import dataclasses

from cupola.passes.schemes import floats, w4, w8
from cupola.passes.schemes.base import Choice, Scheme, Storage
from cupola.targets.weight_functions import WeightFunction

SCHEMES = {scheme.name: scheme for scheme in (*floats.SCHEMES, *w8.SCHEMES, *w4.SCHEMES)}
EMBEDDINGS = {
    "w4": Choice(w4.W4_EMBEDDING, (w4.W4, w4.W4_MINS)),
    "w8": Choice(w8.W8, (w8.W8,)),
    "f16": Choice(floats.F16),
    "bf16": Choice(floats.BF16),
    "f32": Choice(floats.F32),
}
_BY_FUNCTION = {storage.encode: storage for storage in (w4.W4, w4.W4_EMBEDDING, w4.W4_MINS, w8.W8)}


def scheme_of(name: str, embedding: str = "auto") -> Scheme:
    """The scheme called `name`, with the embedding stored as one of EMBEDDINGS, or, "auto", as the scheme does it."""
    scheme = SCHEMES[name]
    if embedding == "auto":
        return scheme
    return dataclasses.replace(scheme, name=f"{name}, embedding {embedding}", embedding=EMBEDDINGS[embedding])


def storage_of(function: WeightFunction) -> Storage | None:
    """The storage that `function` encodes for, or None if it is another function of weights."""
    return _BY_FUNCTION.get(function)


__all__ = ["EMBEDDINGS", "SCHEMES", "Choice", "Scheme", "Storage", "scheme_of", "storage_of"]
