"""Packed weights strip by strip: each strip is made of some rows of the source's tensors, in any thread.

What is packed has come from its tensors by steps that go row by row: quantization, and placing tensors one above the other. Where there is
another step between, the weight is computed whole. Either way the bytes are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.passes.encoders import encoded_weight
from cupola.passes.rewrite import name_of
from cupola.passes.schemes import Storage
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.weight_functions import Rows, function_of, strips_of

if TYPE_CHECKING:
    from cupola.compiler.weights import Transform

Strip = Callable[[], Array]


def strips(transform: Transform, result: relax.Expr) -> Sequence[Strip] | None:
    """Functions that compute the parts of a result, one after another along its first axis; None if it can only be computed whole."""
    call = transform.value(result)
    function = function_of(call)
    make = None if function is None else strips_of(function)
    if make is None or function is None:
        return None
    text, *tensors = call.args[1].fields
    steps = _Rows(transform)
    if not all(map(steps.are_known, tensors)):
        return None
    rows, width = map(int, tensors[0].ty.shape)
    return [partial(_strip, steps, function, name, tensors, some) for name, some in make(str(text.value), (rows, width))]


def _strip(steps: _Rows, function: Callable[..., Array], text: str, tensors: Sequence[relax.Expr], rows: Rows) -> Array:
    encoded: dict[relax.Call, tuple[Array, ...]] = {}
    return function(text, *(steps.rows_of(tensor, rows, encoded) for tensor in tensors))


class _Rows:
    """Evaluates rows of what a weight is made of. Tensors of which rows can't be read are read once, and kept as long as this is."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._lock = threading.Lock()
        self._wholes: dict[tuple[str, int], Any] = {}

    def are_known(self, expr: relax.Expr) -> bool:
        """True if rows of an expression can be evaluated by themselves."""
        value = self._transform.value(expr)
        if isinstance(value, relax.TupleGetItem):
            if self._transform.source(value) is not None:
                return value.ty.ndim == 2
            found = encoded_weight(self._transform.value(value.tuple_value))
            return found is not None and (self._blocks_of(*found) is not None or (self._is_encoded(*found) and self.are_known(found[1])))
        return _is_concat(value) and all(map(self.are_known, self._parts(value)))

    def rows_of(self, expr: relax.Expr, rows: Rows, encoded: dict[relax.Call, tuple[Array, ...]]) -> Array:
        """Some rows of an expression; `encoded` has those of weights that were encoded before for the same strip."""
        value = self._transform.value(expr)
        if not isinstance(value, relax.TupleGetItem):
            return self._of_parts(value, rows, encoded)
        source = self._transform.source(value)
        if source is not None:
            array = self._whole("values", value.index, source.load)
            return self._transform.in_type(value, np.take(array, rows, axis=0))
        call = self._transform.value(value.tuple_value)
        if call not in encoded:
            encoded[call] = self._encode(call, rows)
        return encoded[call][value.index]

    def _of_parts(self, concat: relax.Call, rows: Rows, encoded: dict[relax.Call, tuple[Array, ...]]) -> Array:
        """Rows of tensors that stand one above the other; of rows that rise, as all strips have theirs but for gates and ups."""
        pieces: list[Array] = []
        places: list[Rows] = []
        start = 0
        for part in self._parts(concat):
            end = start + int(part.ty.shape[0])
            (mine,) = np.nonzero((start <= rows) & (rows < end))
            if len(mine):
                own = {} if len(mine) < len(rows) else encoded
                pieces.append(self.rows_of(part, rows[mine] - start, own))
                places.append(mine)
            start = end
        if len(pieces) == 1:
            return pieces[0]
        whole = np.empty((len(rows), *pieces[0].shape[1:]), pieces[0].dtype)
        for place, piece in zip(places, pieces, strict=True):
            whole[place] = piece
        return whole

    def _parts(self, concat: relax.Call) -> Sequence[relax.Expr]:
        return self._transform.value(concat.args[0]).fields

    def _encode(self, call: relax.Call, rows: Rows) -> tuple[Array, ...]:
        found = encoded_weight(call)
        assert found is not None
        storage, weight = found
        source = self._blocks_of(storage, weight)
        if source is not None and storage.format is not None:
            return _in_format(self._block_rows(source, rows), storage.format).tensors
        function = function_of(call)
        assert function is not None
        parts: tuple[Array, ...] = function(str(call.args[1].fields[0].value), self.rows_of(weight, rows, {}))
        self._transform.count_full_scales(call, parts)
        return parts

    def _block_rows(self, source: LazyTensor, rows: Rows) -> QuantizedTensor:
        if source.block_rows is not None:
            return source.block_rows(rows)
        assert source.blocks is not None
        whole: QuantizedTensor = self._whole("blocks", id(source), source.blocks)
        return whole.in_order(rows)

    def _whole(self, what: str, key: int, read: Callable[[], Any]) -> Any:
        with self._lock:
            if (what, key) not in self._wholes:
                self._wholes[what, key] = read()
            return self._wholes[what, key]

    def _blocks_of(self, storage: Storage, weight: relax.Expr) -> LazyTensor | None:
        """The tensor whose blocks a weight is stored by, if that can be said without reading it: mins may turn out too large."""
        source, form = self._transform.stored_source(weight), storage.format
        if source is None or source.blocks is None or form is None or not self._transform.may_keep(source, storage):
            return None
        assert source.format is not None
        is_sure = source.format == form or not form.has_mins or source.format.super_size
        return source if is_sure else None

    def _is_encoded(self, storage: Storage, weight: relax.Expr) -> bool:
        """True if a weight has no blocks that might be kept."""
        source = self._transform.stored_source(weight)
        return source is None or source.blocks is None or not self._transform.may_keep(source, storage)


def _in_format(blocks: QuantizedTensor, form: WeightFormat) -> QuantizedTensor:
    stored = blocks.flat() if blocks.format.super_size and blocks.format.flat == form else blocks.in_format(form)
    assert stored is not None
    return stored


def _is_concat(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and name_of(value) == "concat" and int(value.attrs.axis) == 0
