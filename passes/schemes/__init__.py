"""The quantization schemes by name, and the ways to store an embedding.

Each file of this folder that has `SCHEMES` adds them, by being there: a group size is such a file. What the options allow follows from it,
so none of them imports anything heavy.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

from cupola.passes.schemes import floats
from cupola.passes.schemes.base import Choice, Scheme, Storage, use_name
from cupola.passes.schemes.integers import DEFAULT_GROUP, embedding_choice

_FLOATS = {"f32": floats.F32, "bf16": floats.BF16, "f16": floats.F16}
_BITS = {"w8": 8, "w4": 4}
EMBEDDINGS = (*_FLOATS, *_BITS)


def _schemes() -> dict[str, Scheme]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: list[Scheme] = [scheme for module in modules for scheme in getattr(module, "SCHEMES", ())]
    return {scheme.name: scheme for scheme in sorted(found, key=lambda scheme: (scheme.exact, scheme.group_size))}


SCHEMES = _schemes()
"""Floats first, then by group size, last those that keep what a file has."""


def scheme_of(name: str, embedding: str = "auto") -> Scheme:
    """The scheme called `name`, with the embedding stored as one of EMBEDDINGS, or, "auto", as the scheme does it."""
    scheme = SCHEMES[name]
    if embedding == "auto":
        return scheme
    floats = _FLOATS.get(embedding)
    choice = embedding_choice(_BITS[embedding], scheme.group_size or DEFAULT_GROUP) if floats is None else Choice(floats)
    return dataclasses.replace(scheme, name=f"{name}, embedding {embedding}", embedding=choice)


__all__ = ["EMBEDDINGS", "SCHEMES", "Choice", "Scheme", "Storage", "scheme_of", "use_name"]
