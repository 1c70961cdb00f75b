"""A model sees distances only where positions reach it as rotary angles, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.relax import op

from cupola.compiler.frontend.distances import sees_distances_only
from cupola.targets.ops import Rotary

Model = Callable[[relax.BlockBuilder, relax.Var, relax.Var], relax.Expr]


def module(model: Model) -> IRModule:
    """`forward(tokens, positions, frequencies, table)`, whose hidden states `model` makes of embedded tokens [n, 2, 8] and positions."""
    n, builder = tvm.tirx.Var("n", "int64"), relax.BlockBuilder()
    tokens, positions = (relax.Var(name, relax.TensorType([n], "int32")) for name in ("tokens", "positions"))
    table = relax.Var("table", relax.TensorType([64, 8], "float32"))
    with builder.function("forward", [tokens, positions, table]):
        with builder.dataflow():
            embedded = builder.emit(op.take(table, tokens, axis=0))
            hidden = builder.emit(op.broadcast_to(op.expand_dims(embedded, 1), [n, 2, 8]))
            out = builder.emit_output(model(builder, hidden, positions))
        builder.emit_func_output(out)
    return builder.get()


def angles(b: relax.BlockBuilder, positions: relax.Expr) -> relax.Var:
    """positions × frequencies, [n, 8]."""
    column = b.emit(op.expand_dims(b.emit(op.astype(positions, "float32")), 1))
    frequencies = relax.const(np.geomspace(1, 1e-3, 4, dtype="float32")[None])
    half = b.emit(op.matmul(column, frequencies))
    return b.emit(op.concat(relax.Tuple([half, half]), axis=-1))


def rotary(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    found = angles(b, positions)
    cos, sin = (b.emit(op.multiply(b.emit(wave(found)), relax.const(np.float32(1.1)))) for wave in (op.cos, op.sin))
    return Rotary(x, cos, sin).emit(x.ty)


def nothing(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    return op.multiply(x, x)


def learned(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    table = relax.const(np.zeros((64, 8), "float32"))
    return op.add(x, b.emit(op.expand_dims(b.emit(op.take(table, positions, axis=0)), 1)))


def sinusoidal(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    return op.add(x, b.emit(op.expand_dims(b.emit(op.sin(angles(b, positions))), 1)))


def temperature(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    """Rotary, and scores that grow with the position."""
    grown = b.emit(op.log(b.emit(op.add(b.emit(op.astype(positions, "float32")), relax.const(np.float32(1))))))
    column = b.emit(op.expand_dims(b.emit(op.expand_dims(grown, 1)), 2))
    return op.multiply(b.emit(rotary(b, x, positions)), column)


def squared(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    """Angles that are no multiples of positions."""
    real = b.emit(op.astype(positions, "float32"))
    return rotary(b, x, b.emit(op.multiply(real, real)))


def shifted(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    """Positions less their maximum, which may stand for a length that frequencies depend on: it is not looked through."""
    return rotary(b, x, b.emit(op.subtract(positions, b.emit(op.max(positions)))))


def scaled_by_data(b: relax.BlockBuilder, x: relax.Var, positions: relax.Var) -> relax.Expr:
    column = b.emit(op.expand_dims(b.emit(op.astype(positions, "float32")), 1))
    found = b.emit(op.multiply(column, b.emit(op.mean(x, [1]))))
    return Rotary(x, b.emit(op.cos(found)), b.emit(op.sin(found))).emit(x.ty)


@pytest.mark.parametrize("model", [rotary, nothing], ids=lambda model: model.__name__)
def test_distances_are_all_that_is_seen(model):
    assert sees_distances_only(module(model))


@pytest.mark.parametrize("model", [learned, sinusoidal, temperature, squared, shifted, scaled_by_data], ids=lambda model: model.__name__)
def test_positions_are_seen(model):
    assert not sees_distances_only(module(model))
