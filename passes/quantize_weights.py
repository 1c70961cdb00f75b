"""Stores the weights of linear layers and the embedding as a scheme says.

Before:  lv = cupola.linear(x, R.concat((wq, wk), axis=0))                        # weights float32
After:   lv1 = weight.encode("w4g32", wq);  lv2 = weight.encode("w4g32", wk)      # codes uint8 [N, K], scales f16 [N, K / 32]
         lv = cupola.linear(x, R.concat((lv1[0], lv2[0]), axis=0), scales=R.concat((lv1[1], lv2[1]), axis=0), format="w4g32", quantize_x=32)

The experts of a mixture are stored as linear layers are. What chooses experts stays in float32, as llama.cpp has it: it is small, and an
error there is another expert.

Groups lie along rows, so the parts of joined weights are encoded one by one; where weights are packed, what came from a file in such
blocks then stays as it is. Norms, biases and tables of positions stay in float32: they are small, and their errors are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import tvm
from tvm import IRModule, relax

from cupola.passes.encoders import encode_call
from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls, shape_of
from cupola.passes.schemes.base import Choice, Kept, Scheme, Storage, use_name
from cupola.passes.simplify import axes_of, stacks_matrices, swaps_last_axes
from cupola.targets import ops
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES

_MOST_ENTRIES = 16  # of a table that is looked up as bytes


def quantize_weights(scheme: Scheme, formats: Mapping[str, str] | None = None, kept: Kept | None = None) -> tvm.transform.Pass:
    """The pass. `formats` names, by parameter (`use_name`), what a weight is stored as, in ggml's terms; `kept` says which stay so."""
    return pass_of("quantize_weights", lambda mod: _run(mod, scheme, formats or {}, kept or Kept()))


def _run(mod: IRModule, scheme: Scheme, formats: Mapping[str, str], kept: Kept) -> IRModule:
    quantizer = _Quantizer(scheme, formats, kept, mod["forward"])
    layers: dict[str, Rule] = {f"cupola.{op.name}": quantizer.linear for op in _LAYERS}
    rules: dict[str, Rule] = {**layers, "take": quantizer.take}
    return rewrite_calls(mod, rules)


_LAYERS: tuple[type[ops.Linear | ops.GatedLinear | ops.ExpertLinear | ops.GatedExpertLinear], ...] = (
    ops.Linear, ops.GatedLinear, ops.ExpertLinear, ops.GatedExpertLinear,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The tensors that stand for a weight."""

    weight: relax.Expr
    format: str = ""
    factors: Mapping[str, relax.Expr] = dataclasses.field(default_factory=dict)  # by the names of `WeightFormat.factors`


class _Quantizer:
    def __init__(self, scheme: Scheme, formats: Mapping[str, str], kept: Kept, forward: relax.Function) -> None:
        self.scheme, self.formats, self.kept, self.tokens = scheme, formats, kept, forward.params[0]
        values = [binding.value for block in forward.body.blocks for binding in block.bindings]
        self.last = next((value for value in reversed(values) if ops.Linear.match(value)), None)  # the vocabulary projection
        self.routers = _routers(forward)

    def linear(self, call: relax.Call, scope: Scope) -> relax.Expr | None:
        op = next(found for layer in _LAYERS if (found := layer.match(call)) is not None)
        assert scope.original is not None
        if any(scope.original.same_as(router) for router in self.routers):
            return None
        is_last = self.last is not None and scope.original.same_as(self.last)
        stored = self._store(op.weight, self.scheme.embedding if is_last else self.scheme.linear, scope)
        quantize_x = self.scheme.quantize_x if stored.format and _is_integer(stored.format) else 0
        replaced = dataclasses.replace(op, weight=stored.weight, format=stored.format, quantize_x=quantize_x, **stored.factors)
        return replaced.emit(call.ty)

    def take(self, call: relax.Call, scope: Scope) -> relax.Expr | None:
        table, tokens = call.args
        if not tokens.same_as(self.tokens) or len(shape_of(table)) != 2 or call.attrs.axis is None or int(call.attrs.axis) != 0:
            return None
        stored = self._store(table, self.scheme.embedding, scope)
        if stored.factors:
            factors = {"mins": None, **stored.factors}
            return ops.Embedding(weight=stored.weight, format=stored.format, tokens=tokens, **factors).emit(call.ty)
        rows = relax.op.take(stored.weight, tokens, axis=0, mode=call.attrs.mode)
        return rows if rows.args[0].same_as(table) else relax.op.astype(scope.emit(rows), call.ty.dtype)

    def _store(self, weight: relax.Expr, choice: Choice, scope: Scope) -> _Stored:
        parts = list(_parts(weight, scope))
        names = [_name(part, scope) for part in parts]
        storage = self._own(names) or choice.pick([self.formats.get(name, "") for name in names])
        if storage.format is None:
            same = weight.ty.dtype == storage.dtype
            return _Stored(weight if same else scope.emit(relax.op.astype(weight, storage.dtype)))
        codes, *factors = _concat([_encode(part, storage, scope) for part in parts], scope)
        names = [name for name, _, _ in storage.format.factors]
        return _Stored(codes, storage.format.name, dict(zip(names, factors, strict=True)))

    def _own(self, names: list[str]) -> Storage | None:
        """How the source stores the parts of these names, if they are kept and one of their formats holds all."""
        found = [self.kept.storages.get(name) for name in names]
        known = [each for each in found if each is not None]
        holds = (one for one in known if all(each == one or _fits(each, one) for each in known))
        return next(holds, None) if len(known) == len(found) else None


def _is_integer(form: str) -> bool:
    """True if weights are multiples of scales by small whole numbers, or by eighths of such: what integers can multiply."""
    entries = TABLES.get(WeightFormat.parse(form).table, ())
    return len(entries) <= _MOST_ENTRIES and all(8 * entry == int(8 * entry) for entry in entries)


def _fits(one: Storage, other: Storage) -> bool:
    return one.format is not None and other.format is not None and one.format.fits(other.format)


def _name(part: relax.Expr, scope: Scope) -> str:
    """The parameter that a weight is, perhaps with its columns in another order, or its matrices one above the other; "" if it is none."""
    ordered = scope.call(part, "take")
    param = part if ordered is None else ordered.args[0]
    stacked = scope.call(part, "reshape")
    if stacked is not None and stacks_matrices(stacked):
        param = stacked.args[0]
    swapped = scope.call(param, "permute_dims")
    is_turned = swapped is not None and swaps_last_axes(axes_of(swapped))
    param = swapped.args[0] if swapped is not None and is_turned else param
    return use_name(str(param.name), is_turned) if isinstance(param, relax.Var) else ""


def _routers(forward: relax.Function) -> list[relax.Expr]:
    """The linear layers of which experts are chosen, with nothing but small operations between."""
    values = {binding.var: binding.value for block in forward.body.blocks for binding in block.bindings}
    found: list[relax.Expr] = []
    seen: set[relax.Var] = set()

    def visit(value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            if value in values and value not in seen:
                seen.add(value)
                visit(values[value])
        elif isinstance(value, relax.TupleGetItem):
            visit(value.tuple_value)
        elif ops.Linear.match(value) is not None:
            found.append(value)
        elif isinstance(value, relax.Call | relax.Tuple) and ops.op_name(value) in (None, ops.TopK.name):
            for part in value.args if isinstance(value, relax.Call) else value.fields:
                visit(part)

    for value in values.values():
        choice = ops.TopK.match(value)
        if choice is not None:
            visit(choice.x)
    return found


def _parts(weight: relax.Expr, scope: Scope) -> Iterator[relax.Expr]:
    """The parts that were joined, row under row, to make a weight."""
    joined = scope.call(weight, "concat")
    whole = scope.value(joined.args[0]) if joined is not None and int(joined.attrs.axis) == 0 else None
    if not isinstance(whole, relax.Tuple):
        yield weight
        return
    for field in whole.fields:
        yield from _parts(field, scope)


def _encode(part: relax.Expr, storage: Storage, scope: Scope) -> list[relax.Var]:
    encoded = scope.emit(encode_call(storage, part))
    return [scope.emit(relax.TupleGetItem(encoded, index)) for index in range(len(encoded.ty.fields))]


def _concat(encoded: list[list[relax.Var]], scope: Scope) -> list[relax.Var]:
    if len(encoded) == 1:
        return encoded[0]
    return [scope.emit(relax.op.concat(list(tensors), axis=0)) for tensors in zip(*encoded, strict=True)]
