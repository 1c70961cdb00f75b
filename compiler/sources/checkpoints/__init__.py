"""Checkpoints whose weights are quantized already: the weights that their tensors make, with codes and scales as they are.

Each file of this folder that has `METHODS` adds some, by being there: a method is such a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.checkpoints.base import Method, Parts, Reader, Settings
from cupola.runtime.errors import SourceError, UnsupportedError

FIELDS = ("quantization_config", "compression_config")  # the second is an old name of compressed-tensors'


@dataclass(frozen=True)
class Unpacked:
    """A checkpoint without its quantization.

    Attributes:
        config: the content of config.json, as for a model in floats.
        tensors: the weights, those that were quantized among them, by the names that they have in such a model.
        method: how weights were quantized, for people; "": they are not.
        notes: for people: what was left out.
    """

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    method: str = ""
    notes: tuple[str, ...] = ()


def methods() -> dict[str, Method]:
    """By `quant_method`."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: list[Method] = [method for module in modules for method in getattr(module, "METHODS", ())]
    return {name: method for method in found for name in method.names}


def unpack_checkpoint(config: dict[str, Any], tensors: dict[str, LazyTensor], metadata: Mapping[str, str], file: object) -> Unpacked:
    """Puts weights in the place of the tensors that they are stored as.

    Args:
        config: the content of config.json.
        tensors: the checkpoint's, by name.
        metadata: of its safetensors files.
        file: for errors.

    Raises:
        SourceError: tensors and configuration do not belong together.
        UnsupportedError: the weights are quantized in a way that cupola does not read.
    """
    name, plain = next((name for name in FIELDS if config.get(name)), None), without_quantization(config)
    if name is None:
        return Unpacked(plain, tensors)
    fields = config[name]
    if not isinstance(fields, dict):
        raise SourceError(f"is {fields!r:.40}, not an object", file=file, field=name, fix="download config.json again")
    settings, known = Settings(fields, file, metadata), methods()
    method = known.get(_method_name(fields))
    if method is None:
        titles = ", ".join(dict.fromkeys(each.title for each in known.values()))
        problem = f"is {_method_name(fields)!r:.60}: weights quantized in a way that cupola does not read"
        fix = f"give the model in f32, f16 or bf16, as a GGUF file, or by one of these: {titles}"
        raise UnsupportedError(problem, file=file, field=f"{name}.quant_method", fix=fix)
    reader = method.open(settings)
    weights, left = _weights(reader, tensors, file)
    if not weights:
        problem = f"says {method.title}, but no tensor's name ends in {' or '.join(reader.marks)}"
        raise SourceError(problem, file=file, field=name, fix="use the config.json that came with the weights")
    for end, what in method.refused.items():
        if found := next((tensor for tensor in left if tensor.endswith(end)), None):
            raise UnsupportedError(f"{what}, which cupola does not do", file=file, field=found, fix="give the model in f32, f16 or bf16")
    rest, beside = _without(left, reader.beside)
    notes = [f"{count} {what} are left out" for what, count in beside.items()]
    unread = sorted(set(fields) - settings.seen - set(method.unimportant))
    notes += [f"{name} has fields that nobody reads: {', '.join(unread)[:200]}"] if unread else []
    notes.append(
        f"the weights of {len(weights)} layers come quantized by {method.title}; activations are not quantized unless --quant says so"
    )
    return Unpacked(plain, rest | weights, method.title, tuple(notes))


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json without what it says of quantized weights."""
    return {key: value for key, value in config.items() if key not in FIELDS}


def _method_name(fields: Mapping[str, Any]) -> str:
    stated = fields.get("quant_method") or ("bitsandbytes" if fields.get("load_in_8bit") or fields.get("load_in_4bit") else "")
    return str(stated).lower()


def _weights(reader: Reader, tensors: Mapping[str, LazyTensor], file: object) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The quantized weights by name, and the tensors that are no parts of any."""
    weights, left = {}, dict(tensors)
    for name in tensors:
        mark = next((mark for mark in reader.marks if name.endswith(mark)), None)
        if mark is None or name not in left:
            continue
        module = name.removesuffix(mark)
        parts = {part: left.pop(module + part) for part in reader.parts if module + part in left}
        weight = reader.read(Parts(module, parts, file))
        weights[weight.name] = weight
    return weights, left


def _without(tensors: dict[str, LazyTensor], beside: Mapping[str, str]) -> tuple[dict[str, LazyTensor], Counter[str]]:
    """The tensors without those whose names have such ends, and how many there were of each kind."""
    found = {name: next((what for end, what in beside.items() if name.endswith(end)), None) for name in tensors}
    return {name: tensors[name] for name, what in found.items() if what is None}, Counter(what for what in found.values() if what)


__all__ = ["Unpacked", "methods", "unpack_checkpoint", "without_quantization"]
