from __future__ import annotations

import pytest
import tvm
from tvm import IRModule, relax

from cupola.compiler.frontend.state import kv_layout
from cupola.runtime.artifact.state import LATENT, KVGroup, KVSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets.ops import Attention


def module(*layers: tuple[int, int, int, int, int, int], latent: tuple[int, ...] = ()) -> IRModule:
    """One attention for each (layer, heads, K/V heads, key dim, value dim, window); those of `latent` layers have no values."""
    n, builder = tvm.tirx.Var("n", "int64"), relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([n], "float32"))
    with builder.function("forward", [x]):
        with builder.dataflow():
            for layer, heads, groups, key, value, window in layers:
                shapes = ([n, heads, key], [n, groups, key], [n, groups, value])
                q, k, v = (builder.emit(relax.op.zeros(shape, "float32")) for shape in shapes)
                marker = Attention(q, k, None if layer in latent else v, None, None, layer, 1.0, window, 0.0)
                builder.emit(marker.emit(relax.TensorType([n, heads, value], "float32")))
            out = builder.emit_output(relax.op.add(x, x))
        builder.emit_func_output(out)
    return builder.get()


def test_layers_that_are_alike_form_one_group() -> None:
    spec = kv_layout(module((0, 4, 2, 16, 16, 0), (1, 4, 2, 16, 16, 0)), "float16", 32, "file")
    assert spec == KVSpec((KVGroup((0, 1), 2, 16, 16),), "float16", 32)


def test_windows_form_groups_of_their_own_in_the_order_of_their_first_layers() -> None:
    spec = kv_layout(module((0, 4, 2, 16, 16, 8), (1, 4, 2, 16, 16, 0), (2, 4, 2, 16, 16, 8), (3, 4, 2, 16, 16, 0)), "float32", 16, "file")
    assert spec.groups == (KVGroup((0, 2), 2, 16, 16, window=8), KVGroup((1, 3), 2, 16, 16))


def test_query_heads_do_not_matter_and_value_dims_do() -> None:
    spec = kv_layout(module((0, 4, 2, 16, 8, 0), (1, 2, 2, 16, 8, 0), (2, 4, 2, 16, 16, 0)), "float32", 16, "file")
    assert spec.groups == (KVGroup((0, 1), 2, 16, 8), KVGroup((2,), 2, 16, 16))


def test_layers_without_values_are_a_latent_group() -> None:
    spec = kv_layout(module((0, 4, 1, 24, 16, 0), (1, 4, 1, 24, 16, 0), (2, 4, 1, 24, 16, 0), latent=(0, 2)), "float32", 16, "file")
    assert spec.groups == (KVGroup((0, 2), 1, 24, 16, kind=LATENT), KVGroup((1,), 1, 24, 16))
    assert [group.numbers_per_token for group in spec.groups] == [24, 40]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="file: layer 1: 5 query heads do not divide into 2 K/V heads"):
        kv_layout(module((0, 4, 2, 16, 16, 0), (1, 5, 2, 16, 16, 0)), "float32", 16, "file")


def test_two_attentions_of_one_layer_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="more than one attention"):
        kv_layout(module((0, 4, 2, 16, 16, 0), (0, 4, 2, 16, 8, 0)), "float32", 16, "file")
