"""The program: the data that flows through the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import IRModule

from cupola.compiler.sources.base import LazyTensor
from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec


@dataclass(frozen=True)
class Program:
    """A model on its way through the compiler.

    Attributes:
        mod: Relax functions; the entry is `forward`.
        weights: the tensors behind `forward`'s weight parameters, by parameter name.
        kv: the K/V cache that `forward` needs.
        config: what the runtime must know.
        notes: for people: what was assumed, or is not verified.
    """

    mod: IRModule
    weights: Mapping[str, LazyTensor]
    kv: KVSpec
    config: ModelConfig
    notes: tuple[str, ...] = ()
