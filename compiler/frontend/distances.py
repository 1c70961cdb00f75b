"""Finds out whether a model sees positions, or only the distances between tokens.

Rotary angles are multiples of positions, and a score depends on the difference of two of them. So where positions reach the model through
such angles alone, or not at all, a sequence may begin at any position, and tokens may be given others later.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import IRModule, relax

from cupola.passes.fuse_rotary import fuse_rotary
from cupola.passes.rewrite import name_of
from cupola.targets import ops

# What a value was made of. A multiple of positions has an angle's cosine and sine; anything else of a position may tell where it is.
_CONSTANT, _DATA, _MULTIPLE, _ANGLE = range(4)
_MOVES = (
    "astype", "reshape", "expand_dims", "squeeze", "permute_dims", "broadcast_to", "concat", "strided_slice", "stack", "split", "repeat",
    "tile", "flatten", "take",
)  # fmt: skip
_PRODUCTS = ("multiply", "divide", "matmul", "negative")


def sees_distances_only(mod: IRModule) -> bool:
    """True if `forward`, flat and not yet rewritten, has the same result for positions that are all shifted alike."""
    func = fuse_rotary()(mod)["forward"]
    kinds = {param: _DATA for param in func.params if param.name in ("tokens", "logit_rows")}
    kinds |= {param: _MULTIPLE for param in func.params if param.name == "positions"}
    for block in func.body.blocks:
        for binding in block.bindings:
            kind = _kind(binding.value, kinds)
            if kind is None:
                return False
            kinds[binding.var] = kind
    return True


def _kind(value: relax.Expr, kinds: dict[relax.Var, int]) -> int | None:
    """A value's kind; None if it is none of them."""
    found = {kinds.get(var, _CONSTANT) for var in _variables(value)} - {_CONSTANT}
    if found <= {_DATA}:
        return max(found, default=_CONSTANT)
    if isinstance(value, relax.Var | relax.Tuple | relax.TupleGetItem):
        return found.pop() if len(found) == 1 else None
    return _kind_of_call(value, found, kinds) if isinstance(value, relax.Call) else None


def _kind_of_call(call: relax.Call, found: set[int], kinds: dict[relax.Var, int]) -> int | None:
    """The kind of a call, some of whose arguments are made of positions."""
    rotary, name = ops.Rotary.match(call), name_of(call)
    if rotary is not None:
        angles = [kinds.get(angle, _CONSTANT) for angle in (rotary.cos, rotary.sin)]
        return _DATA if kinds.get(rotary.x) == _DATA and set(angles) <= {_ANGLE, _CONSTANT} else None
    if len(found) > 1:
        return None
    (kind,) = found
    if name in ("cos", "sin"):
        return _ANGLE if kind == _MULTIPLE else None
    num_made = sum(any(kinds.get(var) == kind for var in _variables(argument)) for argument in call.args)
    if name == "divide" and any(kinds.get(var) == kind for var in _variables(call.args[1])):
        return None
    if name == "take":
        return None if any(kinds.get(var) == kind for var in _variables(call.args[1])) else kind
    return kind if name in _MOVES or (name in _PRODUCTS and num_made == 1) else None


def _variables(value: relax.Expr) -> Iterator[relax.Var]:
    """The variables that a bound value is made of; bound values hold no others' values."""
    if isinstance(value, relax.Var):
        yield value
    elif isinstance(value, relax.Tuple):
        for field in value.fields:
            yield from _variables(field)
    elif isinstance(value, relax.TupleGetItem):
        yield from _variables(value.tuple_value)
    elif isinstance(value, relax.Call):
        for argument in value.args:
            yield from _variables(argument)
