"""Functions on weights: written into the IR, lifted out, run by name."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import lift_weights
from cupola.targets.weight_functions import call_weight_function, function_of, weight_function


@weight_function
def halve_and_count(weight):
    return weight / 2, np.array([weight.size], "int64")


def test_runs_where_weights_are_packed():
    builder = relax.BlockBuilder()
    x, weight = relax.Var("x", relax.TensorType([2, 3], "float32")), relax.Var("w", relax.TensorType([2, 3], "float32"))
    out = [relax.TensorType([2, 3], "float32"), relax.TensorType([1], "int64")]
    with builder.function("forward", [x, weight], attrs={"num_input": 1}):
        with builder.dataflow():
            both = builder.emit(call_weight_function(halve_and_count, [weight], out))
            half, count = (builder.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
            result = builder.emit_output(relax.Tuple([builder.emit(relax.op.add(x, half)), count]))
        builder.emit_func_output(result)
    array = np.arange(6, dtype="float32").reshape(2, 3)
    _, packed = lift_weights(builder.get(), {"w": LazyTensor("w", (2, 3), "float32", lambda: array)})
    half, count = (weight.compute() for weight in packed)
    np.testing.assert_array_equal(half, array / 2)
    assert count.tolist() == [6]


def test_names_are_taken_once():
    with pytest.raises(AssertionError, match="halve_and_count"):
        weight_function(halve_and_count)


def test_other_calls_are_none_of_them():
    weight = relax.Var("w", relax.TensorType([2], "float32"))
    assert function_of(relax.op.add(weight, weight)) is None
