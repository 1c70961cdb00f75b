"""The tensors of a GGUF file by the model's names, in the model's arrangement: what llama.cpp's converter changed is undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.composition import combined, in_order, joined, stacked, turned
from cupola.compiler.sources.gguf_architecture import Architecture, Bare, Join
from cupola.compiler.sources.gguf_facts import Facts
from cupola.compiler.sources.gguf_header import RECONVERT, USE_CHECKPOINT, GGUFHeader, TensorInfo
from cupola.compiler.sources.gguf_values import lazy_tensor
from cupola.runtime.errors import SourceError, UnsupportedError

_NAME = re.compile(
    r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,5})\.)?(?P<part>(?:(?:nextn|shortconv)\.)?\w+)(?:\.(?P<expert>0|[1-9][0-9]{0,4}))?(?:\.(?P<kind>weight|bias|scale|input_scale))?"
)
_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
_EXPERTS = "_exps"


class Place(NamedTuple):
    """The place of a tensor in its model: `blk.0.attn_q.weight` is the weight of attn_q of layer 0. Parts of no layer have ""."""

    layer: str
    part: str
    kind: str

    @property
    def axis(self) -> int:
        """The axis of rows: the first one, but for experts'."""
        return 1 if self.part.endswith(_EXPERTS) else 0


class Stored(NamedTuple):
    """The places of a tensor in files: one, or, of old files, expert by expert."""

    infos: tuple[tuple[GGUFHeader, TensorInfo], ...]
    is_stack: bool = False

    @property
    def name(self) -> str:
        """The file's, of the first one."""
        return self.infos[0][1].name

    def tensor(self) -> LazyTensor:
        """The tensor."""
        tensors = [lazy_tensor(header, info, info.name) for header, info in self.infos]
        return stacked(tensors) if self.is_stack else tensors[0]


def parameter_name(target: str, place: Place) -> str | None:
    """The model's name of a tensor, `target` being that of the part; None if it has none, or only one of the two belongs to a layer."""
    ends = {"weight": "", "bias": "_bias", "": ""} if isinstance(target, Bare) else {"weight": ".weight", "bias": ".bias", "": ".weight"}
    if place.kind not in ends or ("{}" in target) != bool(place.layer):
        return None
    return target.format(place.layer) + ends[place.kind]


def _check_groups(facts: Facts) -> None:
    if facts.num_kv_heads < 1 or facts.num_heads % facts.num_kv_heads:
        problem = f"{facts.num_kv_heads} do not divide the {facts.num_heads} attention heads"
        facts.read.fail("attention.head_count_kv", problem)


def _interleaved(heads: int, facts: Facts) -> Array:
    """Halves of each head interleaved: llama.cpp rotates neighbours (0, 1), (2, 3), …; transformers (0, d/2), (1, d/2 + 1), …"""
    _check_groups(facts)
    order: Array = np.arange(heads * facts.head_dim).reshape(heads, facts.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _joined(facts: Facts) -> Array:
    """q, k and v of all heads one after another in the file; of each head together in the model."""
    order: Array = np.arange(3 * facts.num_heads * facts.head_dim).reshape(3, facts.num_heads, facts.head_dim).swapaxes(0, 1).reshape(-1)
    return order


def _grouped(facts: Facts) -> Array:
    """All q, then k, then v in the file; the q of each K/V head, its k and its v together in the model."""
    _check_groups(facts)
    q, groups = facts.num_heads, facts.num_kv_heads
    heads = np.arange(q + 2 * groups)
    by_group = np.concatenate((heads[:q].reshape(groups, -1), heads[q : q + groups, None], heads[q + groups :, None]), axis=1)
    order: Array = (by_group.reshape(-1, 1) * facts.head_dim + np.arange(facts.head_dim)).reshape(-1)
    return order


def _delta_sizes(facts: Facts) -> tuple[int, int, int]:
    """Of linear attention by the delta rule: heads of keys, heads of values by each, and the size of one of those."""
    num_keys, num_values = facts.read.integer("ssm.group_count"), facts.read.integer("ssm.time_step_rank")
    if num_keys < 1 or num_values < 1 or num_values % num_keys:
        facts.read.fail("ssm.time_step_rank", f"is {num_values}, not a multiple of ssm.group_count, {num_keys}")
    return num_keys, num_values // num_keys, facts.read.integer("ssm.inner_size") // num_values


def _qkvz_by_head(facts: Facts) -> Array:
    """All q, then k, v and z in the file; in the model those of each head of keys together."""
    num_keys, group, size = _delta_sizes(facts)
    widths = (facts.read.integer("ssm.state_size"),) * 2 + (group * size,) * 2
    begins = np.cumsum([0, *(num_keys * width for width in widths)])
    parts = [begin + np.arange(num_keys * width).reshape(num_keys, width) for begin, width in zip(begins, widths, strict=False)]
    order: Array = np.concatenate(parts, axis=1).reshape(-1)
    return order


def _values_by_key(facts: Facts, num_rows: int, size: int) -> Array:
    """Heads of values by their place within a group in the file, by the head of keys in the model; rows before them stay there."""
    num_keys, group, _ = _delta_sizes(facts)
    heads: Array = np.arange(group * num_keys * size).reshape(group, num_keys, size).swapaxes(0, 1).reshape(-1)
    before = max(num_rows - len(heads), 0)
    return np.concatenate((np.arange(before), before + heads))


def _in_turns(num_rows: int) -> Array:
    """Two halves in the file; rows of both in turns in the model."""
    order: Array = np.arange(num_rows).reshape(2, -1).T.reshape(-1)
    return order


ROW_ORDERS: Mapping[str, Callable[[Facts, int], Array]] = {
    "rotated q": lambda facts, _: _interleaved(facts.num_heads, facts),
    "rotated k": lambda facts, _: _interleaved(facts.num_kv_heads, facts),
    "joined qkv": lambda facts, _: _joined(facts),
    "falcon qkv": lambda facts, _: _grouped(facts),
    "in turns": lambda _, num_rows: _in_turns(num_rows),
    "qkvz by head": lambda facts, _: _qkvz_by_head(facts),
    "value heads": lambda facts, num_rows: _values_by_key(facts, num_rows, _delta_sizes(facts)[2]),
    "values": lambda facts, num_rows: _values_by_key(facts, num_rows, 1),
}
"""By how the converter moved rows: which row of the file is each row of the model. Blocks of weights lie along rows, and move with them."""


class Change(NamedTuple):
    """A change of values or of their shape."""

    values: Callable[[Array], Array]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


def _log_of_negative(x: Array) -> Array:
    """Mamba's A_log of A, which is negative; numbers of a damaged file that are not become NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values: Array = np.log(-x.astype(np.float32))
    return values


CHANGES: Mapping[str, Change] = {
    "row": Change(lambda x: x.reshape(1, -1), lambda shape: (1, int(np.prod(shape)))),
    "flat": Change(lambda x: x.reshape(-1), lambda shape: (int(np.prod(shape)),)),
    "kernel": Change(lambda x: x.reshape(x.shape[0], 1, -1), lambda shape: (shape[0], 1, int(np.prod(shape[1:])))),
    "log": Change(_log_of_negative),
}
"""By a change that the converter made: what undoes it."""


def _latent(tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Keys' matrices [heads, latent, k], turned, each over that of values [heads, v, latent] -> [heads · (k + v), latent]."""
    keys, values = tensors
    if len(keys.shape) != 3 or len(values.shape) != 3:
        raise ValueError
    by_head = joined([turned(keys), values], 1)
    heads, width, latent = by_head.shape
    return combined([by_head], lambda x: x.reshape(heads * width, latent), (heads * width, latent))


JOINS: Mapping[str, Callable[[Sequence[LazyTensor], int], LazyTensor]] = {"rows": joined, "latent": _latent}
"""By how parts are joined: a function of them and the axis of their rows."""


class _Reader:
    """Arranges a file's tensors as its architecture says."""

    def __init__(self, header: GGUFHeader, architecture: Architecture, facts: Facts) -> None:
        self.header, self.architecture, self.facts = header, architecture, facts
        self.names = architecture.names_in(facts.tensors)

    def read(self, places: Mapping[Place, Stored]) -> tuple[dict[str, LazyTensor], set[Place]]:
        """The model's tensors by name, and what of the file they are."""
        joins = dict(self._joins(places))
        used = {place for _, found in joins.values() for place in found}
        names = {name: place for place in places if place not in used and (name := self._name(place)) is not None}
        if both := sorted(names.keys() & joins.keys()):
            problem = f"is there twice: as it is, and as {' and '.join(joins[both[0]][0].parts)}"
            raise SourceError(problem, file=self.header.path, field=places[names[both[0]]].name, fix=RECONVERT)
        tensors = {name: self._part(place, places[place].tensor()) for name, place in names.items()}
        tensors |= {name: self._join(join, found, places) for name, (join, found) in joins.items()}
        tensors |= self._from_metadata()
        return {name: replace(tensor, name=name) for name, tensor in tensors.items()}, used | set(names.values())

    def _name(self, place: Place) -> str | None:
        """The model's name of a tensor: that of its part, or its own, where it has one."""
        own, part = self.names.get(f"{place.part}.{place.kind}"), self.names.get(place.part)
        if own is not None:
            return own.format(place.layer)
        return None if part is None else parameter_name(part, place)

    def _from_metadata(self) -> dict[str, LazyTensor]:
        """The parameters that the file has as metadata."""
        return {
            name.format(layer): _number(value, axes)
            for name, (key, axes) in self.architecture.from_metadata.items()
            for layer, value in enumerate(self.facts.numbers(key))
        }

    def _part(self, place: Place, tensor: LazyTensor) -> LazyTensor:
        """A part in the model's order, values and direction."""
        tensor = self._in_order(self.architecture.rows.get(place.part, ""), tensor, place)
        if kind := self.architecture.columns.get(place.part):
            tensor = turned(
                self._in_order(kind, replace(turned(tensor), format=None, blocks=None, block_rows=None, is_turned=False), place)
            )
        if self._is_offset(place):
            tensor = _without_offset(tensor)
        for step in self.architecture.values.get(".".join(filter(None, (place.part, place.kind))), ()):
            change = CHANGES[step]
            tensor = combined([tensor], change.values, change.shape(tensor.shape))
        return self._turned(tensor, place)

    def _is_offset(self, place: Place) -> bool:
        is_norm = place.part.endswith("norm") and place.kind == "weight"
        return is_norm and self.architecture.offset_norms and place.part not in self.architecture.plain_norms

    def _turned(self, tensor: LazyTensor, place: Place) -> LazyTensor:
        has_matrices = len(tensor.shape) == 2 + place.axis
        return turned(tensor) if has_matrices and place.part in self.architecture.transposed else tensor

    def _in_order(self, kind: str, tensor: LazyTensor, place: Place) -> LazyTensor:
        if not kind:
            return tensor
        num_rows = tensor.shape[place.axis]
        order = ROW_ORDERS[kind](self.facts, num_rows)
        if len(order) != num_rows:
            problem = f"has {num_rows} rows, and the sizes of heads ask for {len(order)}"
            raise SourceError(problem, file=self.header.path, field=tensor.name, fix=RECONVERT)
        return in_order(tensor, order, place.axis)

    def _joins(self, places: Mapping[Place, Stored]) -> Iterator[tuple[str, tuple[Join, list[Place]]]]:
        """The parameters that are several parts, by name, and the places of these; only where the file has one of them."""
        layers = {(place.layer, place.kind) for place in places}
        for target, join in self.architecture.joins.items():
            for layer, kind in sorted(layers):
                found = [Place(layer, part, kind) for part in join.parts]
                name = parameter_name(target, found[0])
                if name is not None and any(place in places for place in found):
                    yield name, (join, found)

    def _join(self, join: Join, found: Sequence[Place], places: Mapping[Place, Stored]) -> LazyTensor:
        if missing := next((place for place in found if place not in places), None):
            field = f"blk.{missing.layer}.{missing.part}.{missing.kind}"
            raise SourceError("is missing", file=self.header.path, field=field, fix=RECONVERT)
        present = [places[place].tensor() for place in found]
        try:
            whole = JOINS[join.how](present, found[0].axis)
        except ValueError:
            shapes = " and ".join(str(list(tensor.shape)) for tensor in present)
            raise SourceError(
                f"does not fit its neighbour: {shapes}", file=self.header.path, field=present[0].name, fix=RECONVERT
            ) from None
        return self._turned(self._in_order(join.rows, whole, found[0]), found[0])


def _number(value: float, axes: int) -> LazyTensor:
    shape = (1,) * axes
    return LazyTensor("", shape, "float32", lambda: np.full(shape, value, np.float32), "F32")


def _without_offset(tensor: LazyTensor) -> LazyTensor:
    def load() -> Array:
        return np.ascontiguousarray(tensor.load().astype(np.float32) - 1)

    return LazyTensor(tensor.name, tensor.shape, "float32", load, tensor.stored_as)


def _places(parts: Sequence[GGUFHeader]) -> tuple[dict[Place, Stored], list[str]]:
    """The places of a file's tensors, and the names that say nothing of the kind. Single experts, of old files, are one."""
    found: dict[Place, Stored] = {}
    experts: dict[Place, dict[int, tuple[GGUFHeader, TensorInfo]]] = {}
    unknown = []
    for header, info in ((part, info) for part in parts for info in part.tensors):
        match = _NAME.fullmatch(info.name)
        if match is None:
            unknown.append(info.name)
            continue
        place = Place(match["layer"] or "", match["part"], match["kind"] or "")
        if match["expert"] is None:
            found[place] = Stored(((header, info),))
        else:
            experts.setdefault(place._replace(part=place.part + _EXPERTS), {})[int(match["expert"])] = (header, info)
    for place, single in experts.items():
        _check_experts(place, single)
        found[place] = Stored(tuple(single[number] for number in range(len(single))), is_stack=True)
    return found, unknown


def _check_experts(place: Place, single: Mapping[int, tuple[GGUFHeader, TensorInfo]]) -> None:
    header, first = single[min(single)]
    if missing := sorted(set(range(max(single) + 1)) - set(single)):
        name = f"blk.{place.layer}.{place.part.removesuffix(_EXPERTS)}.{missing[0]}.{place.kind}"
        raise SourceError("is missing", file=header.path, field=name, fix=RECONVERT)
    if odd := next((info for _, info in single.values() if info.shape != first.shape), None):
        problem = f"has the shape {list(odd.shape)}, where the others have {list(first.shape)}"
        raise SourceError(problem, file=header.path, field=odd.name, fix=RECONVERT)


def read_tensors(
    header: GGUFHeader, parts: Sequence[GGUFHeader], architecture: Architecture, facts: Facts
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """The tensors of a file by the model's names, and notes on those that are left out.

    Args:
        header: of the whole.
        parts: of the files that the tensors lie in.
        architecture: the file's.
        facts: of the file.

    Raises:
        SourceError: a tensor is missing or does not fit.
        UnsupportedError: the format knows a tensor that the model has no place for, which would change what the model computes.
    """
    places, unknown = _places(parts)
    own = {place: tensor for place, tensor in places.items() if not facts.is_further(place.layer)}
    tensors, used = _Reader(header, architecture, facts).read(own)
    for place in (each for each in own if each not in used):
        if place.part in _known_parts():
            problem = f"is a part that {architecture.model_class} does not have here"
            raise UnsupportedError(problem, file=header.path, field=own[place].name, fix=USE_CHECKPOINT)
        unknown.extend([own[place].name] if place.part not in _FACTORS else [])
    notes = [f"{len(unknown)} unknown tensors left out, such as {unknown[0]:.60}"] if unknown else []
    notes += ["the layers that predict further tokens are left out"] if len(own) < len(places) else []
    return tensors, tuple(notes)


@cache
def _known_parts() -> frozenset[str]:
    """The parts that the gguf package knows of any architecture."""
    from gguf.constants import TENSOR_NAMES

    return frozenset(name.removeprefix("blk.{bid}.") for name in TENSOR_NAMES.values()) - set(_FACTORS)
