"""Which checkpoint tensor each parameter of a model is.

Names change between what was saved and what the model calls its parameters; transformers' own renaming is followed
(`transformers.core_model_loading.rename_source_key`), so that what it can load binds here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupola.compiler.sources.base import WEIGHT_DTYPES, LazyTensor, Source
from cupola.compiler.sources.conversions import Conversion
from cupola.compiler.sources.huggingface import BUFFERS
from cupola.compiler.sources.outline import OUTLINE, outline_weights
from cupola.runtime.errors import SourceError, UnsupportedError

_COMPARED_ROWS = 4096


@dataclass(frozen=True)
class Naming:
    """How checkpoints name, and arrange, the tensors of a model.

    Attributes:
        base_model_prefix: the model's, such as `model` or `transformer`; a checkpoint saved from the base model lacks it.
        transforms: transformers' renamings and conversions, of the model and of those inside it.
    """

    base_model_prefix: str
    transforms: tuple[Any, ...] = ()

    @classmethod
    def of(cls, model: Any) -> Naming:
        """That of a model of transformers, as its own loading takes it, without prefixes of a class around it, as ShieldGemma 2 has one."""
        from transformers.conversion_mapping import get_model_conversion_mapping

        every, paths = get_model_conversion_mapping(model), {path for path, _ in model.named_modules()}
        return cls(model.base_model_prefix, tuple(each for each in every if _added_prefix(each) in {None, *paths}))


def _added_prefix(transform: Any) -> str | None:
    """The path of the module whose name a transform puts before those of a whole model; None for any other transform."""
    from transformers.core_model_loading import PrefixChange

    if not isinstance(transform, PrefixChange) or transform.prefix_to_add is None or transform.scope_prefix:
        return None
    return ".".join(filter(None, (transform.model_prefix, transform.prefix_to_add)))


def _renamed(source: Source, parameters: Mapping[str, tuple[int, ...]], naming: Naming, left_out: Collection[str]) -> dict[str, LazyTensor]:
    """The checkpoint's tensors by the model's names, those that the model has in another arrangement converted."""
    from transformers.core_model_loading import WeightRenaming, apply_renamings, rename_source_key

    renamings = [each for each in naming.transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in naming.transforms if not isinstance(each, WeightRenaming)]
    conversions: dict[str, Conversion] = {}
    # Only whether a name is there is asked of this; an empty prefix would be stripped from every name.
    known: dict[str, Any] = {**dict.fromkeys(left_out, True), **parameters}
    named: dict[str, LazyTensor] = {}
    for name, tensor in source.tensors.items():
        if name in parameters:
            named[name] = tensor
            continue
        renamed, converted = rename_source_key(name, renamings, converters, naming.base_model_prefix or None, known)
        if converted is None or renamed in left_out:
            named.setdefault(renamed, tensor)
            continue
        plain = apply_renamings(name, renamings)
        converter = next(each for each in converters if each.rename_source_key(plain)[1] is not None)
        conversion = conversions.setdefault(renamed, Conversion(converter, renamed, source.name))
        conversion.add(converted, plain, tensor)
    for conversion in conversions.values():
        for name, tensor in conversion.tensors(parameters).items():
            if name in named:
                raise SourceError(f"is there twice: as it is, and as {tensor.names[0]}, …", file=source.name, field=name)
            named[name] = tensor
    return named


def _same_values(first: LazyTensor, second: LazyTensor) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    one, other = first.load(), second.load()
    return all(
        np.array_equal(one[row : row + _COMPARED_ROWS], other[row : row + _COMPARED_ROWS])
        for row in range(0, first.shape[0], _COMPARED_ROWS)
    )


def _check_tied(source: Source, named: Mapping[str, LazyTensor], tied: Mapping[str, str]) -> None:
    """Tensors that the model ties must not differ in the checkpoint, or one would silently be lost."""
    for target, origin in tied.items():
        if target in named and origin in named and not _same_values(named[target], named[origin]):
            raise SourceError(
                f"differs from {origin}, though the configuration ties the two",
                file=source.name,
                field=target,
                fix="set tie_word_embeddings to false in config.json if both are meant",
            )


def bind_weights(
    source: Source,
    parameters: Mapping[str, tuple[int, ...]],
    naming: Naming,
    tied: Mapping[str, str],
    left_out: Collection[str] = (),
) -> dict[str, LazyTensor]:
    """Find the checkpoint tensor of every parameter.

    Args:
        source: the model.
        parameters: name -> shape, as `named_parameters()` of the model that transformers builds from `source.config` gives them.
        naming: the model's.
        tied: parameters that share a value: name -> the name it is tied to (`all_tied_weights_keys`).
        left_out: further parameters of the model, which need no tensor.

    Returns:
        parameter name -> tensor, whose own `name` is the one in the checkpoint.

    Raises:
        SourceError: a tensor is missing, has another shape, or differs from the one that it is tied to.
        UnsupportedError: the checkpoint holds a tensor in an arrangement that is not known, or in a type that is none of weights.
    """
    if source.format == OUTLINE:
        return outline_weights(source, parameters)
    named = _renamed(source, parameters, naming, frozenset(left_out))
    _check_tied(source, named, tied)
    sharing = {**{origin: target for target, origin in tied.items()}, **tied}
    bound = {}
    for name, shape in parameters.items():
        tensor = named.get(name) or named.get(sharing.get(name, ""))
        if tensor is None:
            raise SourceError(
                "is missing from the weights", file=source.name, field=name, fix="check that config.json and weights belong together"
            )
        if tensor.shape != tuple(shape):
            stated = f"has the shape {list(tensor.shape)}, where the configuration asks for {list(shape)}"
            raise SourceError(stated, file=source.name, field=tensor.name, fix="check that config.json and weights belong together")
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UnsupportedError(
                f"has the type {tensor.stored_as}", file=source.name, field=tensor.name, fix="give the model in f32, f16 or bf16"
            )
        bound[name] = tensor
    return bound


def left_out_tensors(source: Source, naming: Naming, left_out: Collection[str]) -> dict[str, str]:
    """The checkpoint's tensors of parameters that were left out: name in the checkpoint -> name in the model."""
    if source.format == OUTLINE or not left_out:
        return {}
    names = frozenset(left_out)
    return {tensor.name: name for name, tensor in _renamed(source, {}, naming, names).items() if name in names}


def unused_tensors(source: Source, bound: Mapping[str, LazyTensor], tied: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of checkpoint tensors that no parameter took, without the buffers that models compute for themselves.

    Args:
        source: the model.
        bound: what `bind_weights` gave.
        tied: names of parameters that share another's value, whose own tensors may go unused.
    """
    used = {name for tensor in bound.values() for name in (tensor.names or (tensor.name,))} | set(tied)
    return tuple(name for name in source.tensors if name not in used and not BUFFERS.search(name))
