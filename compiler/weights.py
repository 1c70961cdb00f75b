"""Weights on their way into the artifact: the transforms that the passes wrote into the graph, run tensor by tensor.

`LiftTransformParams` moves every expression over weights alone into a function of its own. Each of its results is
computed here when it is asked for, from lazily read tensors, so that the peak is one weight and not one model.
Where a scheme's encoding stands on a tensor that comes in blocks which the scheme holds, the blocks are taken as they are.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weight_operations import OPERATIONS
from cupola.compiler.weight_strips import Strip, strips
from cupola.passes.encoders import encoded_weight
from cupola.passes.rewrite import name_of
from cupola.passes.schemes import Storage
from cupola.passes.schemes.integers import DEFAULT_GROUP
from cupola.passes.simplify import axes_of, stacks_matrices, swaps_last_axes
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.weight_functions import function_of

Array = npt.NDArray[Any]
TRANSFORM = "forward_transform_params"
_MAX_NAME_LENGTH = 160
_MAX_NOTES = 8  # on weights that overflow, each by name
_MAX_F16 = np.finfo(np.float16).max
_MUCH_PADDING = 1 / 20  # of a row


@dataclass(frozen=True)
class Encoding:
    """How a tensor of the source is quantized.

    Attributes:
        name: the tensor's.
        stored_as: its type in the source.
        kept: what of that is taken as it is: its blocks, its codes with rounded scales, or ""; nothing.
        storage: what they, or its quantized values, are stored as.
        width: values of a row.
        padded: the same in whole groups, where smaller groups would take up less.
    """

    name: str
    stored_as: str
    kept: str
    storage: str
    width: int
    padded: int


@dataclass(frozen=True)
class PackedWeight:
    """A weight as `forward` takes it.

    `compute` reads what it is made of and returns it, C-contiguous; what `strips` gives computes it part by part: if there are several,
    each in any thread.
    """

    spec: TensorSpec
    compute: Callable[[], Array]
    encodings: tuple[Encoding, ...] = ()
    overflows: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of all weights that were computed: a source tensor's name -> what of it float16 could not hold."""
    strips: Callable[[], Sequence[Strip]] | None = field(default=None, compare=False)

    @property
    def storage(self) -> str:
        """How the weight that this is part of is stored, for people."""
        return self.encodings[0].storage if self.encodings else self.spec.dtype


def lift_weights(mod: IRModule, weights: Mapping[str, LazyTensor]) -> tuple[IRModule, tuple[PackedWeight, ...]]:
    """Takes everything that depends on weights alone out of `forward`, whose weight parameters become the results.

    Args:
        mod: a module whose `forward` has the attribute num_input, the number of parameters that are no weights.
        weights: the tensors behind the other parameters, by name.

    Raises:
        UnsupportedError: an operation on weights has no counterpart in numpy here, by the name of the weight.
    """
    names = [param.name for param in mod["forward"].params[_num_inputs(mod) :]]
    lifted = relax.transform.LiftTransformParams()(mod)
    transform = Transform(lifted[TRANSFORM], [weights[name] for name in names])
    del lifted[TRANSFORM]
    params = lifted["forward"].params[_num_inputs(lifted) :]
    for index in range(len(params)):
        transform.check(index)
    labels = _unique(transform.label(index) for index in range(len(params)))
    packed = [
        PackedWeight(
            _spec(name, var), transform.computer(index), transform.encodings(index), transform.overflows, partial(transform.strips, index)
        )
        for index, (name, var) in enumerate(zip(labels, params, strict=True))
    ]
    return lifted, tuple(packed)


def encoding_notes(weights: Sequence[PackedWeight]) -> list[str]:
    """For people: how many of the source's tensors keep their blocks, how many were quantized here, and rows that groups do not suit."""
    every = {each for weight in weights for each in weight.encodings}
    kept = Counter((each.stored_as, each.kept) for each in every if each.kept)
    quantized = Counter((each.stored_as, each.storage) for each in every if not each.kept)
    clauses = [f"{count} keep{'s its' if count == 1 else ' their'} {kind} {what}" for (kind, what), count in sorted(kept.items())]
    clauses += [
        f"{count} {'is' if count == 1 else 'are'} quantized from {kind or 'floats'} to {storage}"
        for (kind, storage), count in sorted(quantized.items())
    ]
    widths = sorted({(each.width, each.padded) for each in every if each.padded - each.width > _MUCH_PADDING * each.width})
    padded = [f"rows of {width} values take up {padded}, in whole groups; smaller groups would fit better" for width, padded in widths]
    return [f"of the weights, {', '.join(clauses)}", *padded] if every else []


def overflow_notes(weights: Sequence[PackedWeight]) -> list[str]:
    """For people, once all weights were computed: what is too large for the type that it is stored in."""
    found = {name: what for weight in weights for name, what in weight.overflows.items()}
    notes = [f"{name}: too large for float16, in which they are stored: {what}" for name, what in found.items()]
    more = [f"{len(notes) - _MAX_NOTES} further weights have values that are too large for float16"] if len(notes) > _MAX_NOTES else []
    return notes[:_MAX_NOTES] + more


def _num_inputs(mod: IRModule) -> int:
    return int(mod["forward"].attrs["num_input"])


def _spec(name: str, var: relax.Var) -> TensorSpec:
    return TensorSpec(name, str(var.ty.dtype), tuple(int(size) for size in var.ty.shape))


def _unique(names: Iterator[str]) -> list[str]:
    seen: dict[str, int] = {}
    for name in names:
        base = name
        while name in seen:
            seen[base] += 1
            name = f"{base}#{seen[base]}"
        seen[name] = 1
    return list(seen)


class Transform:
    """The lifted function; `sources` are the tensors that its parameter tuple holds."""

    def __init__(self, func: relax.Function, sources: list[LazyTensor]) -> None:
        self.bound = {binding.var: binding.value for block in func.body.blocks for binding in block.bindings}
        self.sources = sources
        self.overflows: dict[str, str] = {}
        self._overflowed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.encoded: dict[relax.Call, tuple[Array, ...]] = {}
        self.previous = self.encoded
        results = self.value(func.body.body)
        if isinstance(results, relax.Tuple):
            self.results = list(results.fields)
        else:  # the parameters themselves, where no pass asked for anything
            normalize = relax.BlockBuilder().normalize
            self.results = [normalize(relax.TupleGetItem(results, index)) for index in range(len(sources))]

    def check(self, index: int) -> None:
        """Raises UnsupportedError where result `index` cannot be computed, before anybody waits for kernels."""
        calls = [value for value in self._values_of(self.results[index]) if isinstance(value, relax.Call)]
        for call in calls:
            if function_of(call) is None and encoded_weight(call) is None and name_of(call) not in (*OPERATIONS, "astype"):
                what = f"the kernel {call.args[0].name_hint}" if name_of(call) == "call_tir" else name_of(call)
                raise UnsupportedError(f"goes through {what}, which the packer of weights does not know", field=self.label(index))

    def computer(self, index: int) -> Callable[[], Array]:
        """A function that computes result `index`."""
        return lambda: self._compute(self.results[index])

    def encodings(self, index: int) -> tuple[Encoding, ...]:
        """The encodings of the quantized weights in result `index`."""
        found = (encoded for value in self._values_of(self.results[index]) if (encoded := encoded_weight(value)) is not None)
        return tuple(encoding for storage, weight in found for encoding in self._encodings_of(weight, storage))

    def label(self, index: int) -> str:
        """A name for result `index`, from the tensors that it is made of."""
        names = list(dict.fromkeys(source.name for source in self._sources_of(self.results[index])))
        if len(names) < 2:
            return names[0] if names else f"constant.{index}"
        pieces = [name.split(".")[:-1] for name in names]
        shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*pieces, strict=False))
        start = "".join(f"{level[0]}." for level in shared)
        return (start + "+".join(name.removeprefix(start) for name in names))[:_MAX_NAME_LENGTH]

    def strips(self, index: int) -> Sequence[Strip]:
        """Functions that compute the parts of result `index`, in order."""
        return strips(self, self.results[index]) or [self.computer(index)]

    def value(self, expr: relax.Expr) -> relax.Expr:
        """The value that an expression is bound to, through all names."""
        while isinstance(expr, relax.Var) and expr in self.bound:
            expr = self.bound[expr]
        return expr

    def _values_of(self, expr: relax.Expr) -> Iterator[relax.Expr]:
        """An expression and all that it is made of."""
        value = self.value(expr)
        yield value
        inner = isinstance(value, relax.TupleGetItem) and self.source(value) is None
        parts = value.args if isinstance(value, relax.Call) else value.fields if isinstance(value, relax.Tuple) else ()
        for part in (value.tuple_value,) if inner else parts:
            yield from self._values_of(part)

    def source(self, expr: relax.Expr) -> LazyTensor | None:
        """The tensor that an expression is, if it is one of the source's as it is."""
        value = self.value(expr)
        is_source = isinstance(value, relax.TupleGetItem) and isinstance(self.value(value.tuple_value), relax.Var)
        return self.sources[value.index] if is_source else None

    def _sources_of(self, expr: relax.Expr) -> Iterator[LazyTensor]:
        return (source for value in self._values_of(expr) if (source := self.source(value)) is not None)

    def stored_source(self, weight: relax.Expr) -> LazyTensor | None:
        """The tensor whose blocks a weight comes in, perhaps with its columns in the order of these, or matrices one above the other."""
        value = self.value(weight)
        if isinstance(value, relax.Call) and name_of(value) == "take":
            source = self.source(value.args[0])
            return source if source is not None and source.order is not None else None
        inner, is_turned = self._matrices(value)
        source = self.source(inner)
        return source if source is not None and source.order is None and source.is_turned == is_turned else None

    def _matrices(self, weight: relax.Expr) -> tuple[relax.Expr, bool]:
        """The tensor that a weight is made of by placing matrices one above the other and swapping their axes, and whether that is done."""
        value = self.value(weight)
        if isinstance(value, relax.Call) and stacks_matrices(value):
            value = self.value(value.args[0])
        is_turned = isinstance(value, relax.Call) and name_of(value) == "permute_dims" and swaps_last_axes(axes_of(value))
        return (value.args[0] if is_turned else value), is_turned

    def _encodings_of(self, weight: relax.Expr, storage: Storage) -> Iterator[Encoding]:
        source = self.stored_source(weight)
        exact = source is not None and _holds(storage, source)
        kept = ("blocks" if exact else "codes, their scales rounded") if self.may_keep(source, storage) else ""
        width, form = int(weight.ty.shape[1]), storage.format
        padded = form.num_groups(width) * form.group_size if form is not None and form.group_size > DEFAULT_GROUP else width
        tensors = (each for each in self._sources_of(weight) if each.dtype != "int32")  # those are orders of columns
        return (Encoding(each.name, each.stored_as, kept, storage.name, width, padded) for each in tensors)

    def may_keep(self, source: LazyTensor | None, storage: Storage) -> bool:
        """True if a tensor's blocks, or their codes, can be what a storage holds."""
        if source is None or source.format is None or storage.format is None:
            return False
        return source.format.fits(storage.format) or source.format.flat == storage.format

    def _compute(self, result: relax.Expr) -> Array:
        # The parts of an encoded weight are results that follow each other: it is encoded once, and then forgotten.
        self.previous, self.encoded = self.encoded, {}
        array = np.ascontiguousarray(self._evaluate(result))
        self.previous = {}
        return array

    def _evaluate(self, expr: relax.Expr) -> Any:
        value = self.value(expr)
        if isinstance(value, relax.TupleGetItem):
            inner = self.value(value.tuple_value)
            return self._load(value) if isinstance(inner, relax.Var) else self._evaluate(inner)[value.index]
        if isinstance(value, relax.Tuple):
            return [self._evaluate(field) for field in value.fields]
        if isinstance(value, tvm.ir.GenericConst):
            return value.value.numpy()
        if isinstance(value, tvm.ir.StringImm):
            return str(value.value)
        if isinstance(value, relax.Call):
            return self._apply(value)
        return value  # a shape, an axis: the operation reads it as it is

    def _load(self, item: relax.TupleGetItem) -> Array:
        return self.in_type(item, self.sources[item.index].load())

    def in_type(self, expr: relax.Expr, array: Array) -> Array:
        """`array`, the value of `expr` or rows of it, in the type that `expr` has."""
        dtype = str(expr.ty.dtype)
        return array if str(array.dtype) == dtype else self._cast(expr, array, dtype)

    def _cast(self, expr: relax.Expr, array: Array, dtype: str) -> Array:
        """`array`, the value of `expr`, in another type; what does not fit into it is counted."""
        with np.errstate(over="ignore"):
            cast: Array = array.astype(_numpy_dtype(dtype))
        if dtype == "float16" and (count := np.count_nonzero(np.isinf(cast)) - np.count_nonzero(np.isinf(array))):
            self._count_overflow(expr, int(count), "{} values")
        return cast

    def _count_overflow(self, expr: relax.Expr, count: int, what: str) -> None:
        names = " and ".join(dict.fromkeys(source.name for source in self._sources_of(expr))) or "a constant"
        with self._lock:
            self._overflowed[names] += count
            self.overflows[names] = what.format(self._overflowed[names])

    def count_full_scales(self, call: relax.Call, parts: Sequence[Array]) -> None:
        """Takes note of groups, in tensors that `call` gave, whose scale was clipped where float16 ends, and their codes with it."""
        full = sum(int(np.count_nonzero(abs(part) >= _MAX_F16)) for part in parts if part.dtype == np.float16)
        if full:
            self._count_overflow(call, full, "the scales of {} groups")

    def _apply(self, call: relax.Call) -> Any:
        encoded = encoded_weight(call)
        if encoded is not None:
            return self._encode(call, *encoded)
        if function_of(call) is not None:
            return self._call(call)
        if name_of(call) == "astype":
            return self._cast(call, self._evaluate(call.args[0]), str(call.attrs.dtype))
        return OPERATIONS[name_of(call)](call, *(self._evaluate(arg) for arg in call.args))

    def _call(self, call: relax.Call) -> Any:
        function = function_of(call)
        assert function is not None
        return function(*(self._evaluate(argument) for argument in call.args[1].fields))

    def _encode(self, call: relax.Call, storage: Storage, weight: relax.Expr) -> tuple[Array, ...]:
        found = self.encoded.get(call) or self.previous.get(call)
        if found is None:
            blocks = self._blocks(weight, storage)
            found = self._encoded(call, weight) if blocks is None else blocks.tensors
            if blocks is None:
                self.count_full_scales(call, found)
        self.encoded[call] = found
        return found

    def _encoded(self, call: relax.Call, weight: relax.Expr) -> tuple[Array, ...]:
        """A weight as the encoder gives it; experts, whose rows it does not see together, one by one."""
        experts = self._experts(weight)
        if experts is None:
            encoded: tuple[Array, ...] = self._call(call)
            return encoded
        function, form = function_of(call), str(call.args[1].fields[0].value)
        assert function is not None
        return tuple(map(np.concatenate, zip(*(function(form, matrix) for matrix in experts), strict=True)))

    def _experts(self, weight: relax.Expr) -> Iterator[Array] | None:
        """The matrices, in float32, that a weight has one above the other, if the source has them as one tensor, perhaps transposed."""
        inner, is_transposed = self._matrices(weight)
        source = self.source(inner)
        if source is None or len(source.shape) != 3:
            return None
        matrices = (slab.load() for slab in source.slabs) if source.slabs else iter(source.load())
        return (np.ascontiguousarray(matrix.T if is_transposed else matrix, dtype="float32") for matrix in matrices)

    def _blocks(self, weight: relax.Expr, storage: Storage) -> QuantizedTensor | None:
        """The blocks that a weight comes in, in the format of `storage`; None where there are none or it has no place for them."""
        source = self.stored_source(weight)
        if source is None or source.blocks is None or storage.format is None or not self.may_keep(source, storage):
            return None
        blocks = source.blocks()
        return blocks.flat() if blocks.format.super_size and blocks.format.flat == storage.format else blocks.in_format(storage.format)


def _holds(storage: Storage, source: LazyTensor) -> bool:
    """True if it takes the blocks of a tensor with all of their bits."""
    fits = source.format is not None and storage.format is not None and source.format.fits(storage.format)
    return source.stored_as in storage.holds or (fits and source.stored_as not in storage.nears)


def _numpy_dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
