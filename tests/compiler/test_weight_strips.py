"""Weights that are packed strip by strip have the bytes that they have when they are packed whole, whatever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tvm import IRModule, relax

from cupola.compiler.artifact_writer import write_weights
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.composition import in_order, stacked
from cupola.compiler.weights import PackedWeight, lift_weights, overflow_notes
from cupola.passes.encoders import encode_call
from cupola.passes.schemes.integers import storage
from cupola.targets.cpu.linear import quantized_packing
from cupola.targets.cpu.linear.quantized_packing import Codes, pack_codes, pack_expert_codes, pack_gated_codes
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.weight_functions import call_weight_function
from tests.compiler.encodings import File

WIDTH = 512


@pytest.fixture(autouse=True)
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_packing, "_STRIP", 32 * WIDTH)


def floats(name: str, num_rows: int, dtype: str = "bfloat16", scale: float = 0.05) -> LazyTensor:
    values = (scale * np.random.default_rng(len(name)).standard_normal((num_rows, WIDTH))).astype("float32")
    array = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return LazyTensor(name, array.shape, dtype, lambda: array, dtype)


def lifted(tensors: Sequence[LazyTensor], form: str, pack: Callable[..., np.ndarray] = pack_codes, text: str = "") -> PackedWeight:
    """The weight that is packed of these tensors, each quantized by itself, one above the other."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([], "float32"))
    params = [relax.Var(f"p{i}", relax.TensorType(tensor.shape, "float32")) for i, tensor in enumerate(tensors)]
    packing = Codes(WeightFormat.parse(form))
    with builder.function("forward", [x, *params], {"num_input": 1}):
        with builder.dataflow():
            parts: list[list[relax.Expr]] = []
            for param in params:
                rows = param
                if param.ty.ndim == 3:
                    rows = builder.emit(relax.op.reshape(param, (int(param.ty.shape[0]) * int(param.ty.shape[1]), WIDTH)))
                encoded = builder.emit(encode_call(storage(packing.format), rows))
                parts.append([builder.emit(relax.TupleGetItem(encoded, i)) for i in range(len(encoded.ty.fields))])
            joined = [each[0] if len(each) == 1 else builder.emit(relax.op.concat(list(each), axis=0)) for each in zip(*parts, strict=True)]
            num_rows = int(joined[0].ty.shape[0])
            panels = sum(-(-rows // 32) for rows in _panels(num_rows, text))
            shape = [panels, WIDTH // packing.format.block_size, packing.group_bytes]
            packed = builder.emit(call_weight_function(pack, [f"{form}{text}", *joined], relax.TensorType(shape, "uint8")))
            result = builder.emit_output(relax.Tuple([relax.op.multiply(x, x), packed]))
        builder.emit_func_output(result)
    mod: IRModule = builder.get()
    _, weights = lift_weights(mod, {f"p{i}": tensor for i, tensor in enumerate(tensors)})
    [weight] = [weight for weight in weights if weight.spec.dtype == "uint8"]
    return weight


def _panels(num_rows: int, text: str) -> list[int]:
    experts = int(text.split()[0]) if text else 1
    return [num_rows // experts] * experts


def check(weight: PackedWeight, count: int) -> None:
    """Its strips are so many, and make up the whole, in any order and in threads."""
    assert weight.strips is not None
    strips = weight.strips()
    assert len(strips) == count
    with ThreadPoolExecutor(4) as pool:
        made = [future.result() for future in [pool.submit(strip) for strip in reversed(strips)]][::-1]
    np.testing.assert_array_equal(np.concatenate(made), weight.compute())
    assert tuple(weight.spec.shape) == weight.compute().shape


KINDS = [("Q4_0", "w4g32"), ("Q4_1", "w4g32m"), ("Q8_0", "w8g32"), ("Q4_0", "w8g32"), ("Q4_K", "w4g32m-s6x256"), ("Q6_K", "w6g16-s8x256")]


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_blocks_of_files(kind: str, form: str) -> None:
    file = File({"a": kind, "b": kind}, (70, WIDTH))
    check(lifted(list(file.tensors.values()), form), 5)
    assert not any("floats" in read for read in file.reads)


def test_rows_of_blocks_are_read_alone_where_that_can_be() -> None:
    file = File({"a": "Q4_0"}, (96, WIDTH))
    rows = np.random.default_rng(1).permutation(96)
    asked: list[int] = []
    whole = file.tensors["a"].blocks
    assert whole is not None

    def some(of: np.ndarray) -> QuantizedTensor:
        asked.append(len(of))
        return whole().in_order(of)

    tensor = in_order(replace(file.tensors["a"], block_rows=some), rows)
    weight = lifted([tensor], "w4g32")
    assert weight.strips is not None
    made = np.concatenate([strip() for strip in weight.strips()])
    assert asked == [32, 32, 32]
    np.testing.assert_array_equal(made, weight.compute())


@pytest.mark.parametrize("form", ["w4g32", "w4g32m", "w8g32", "w8g128"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_floats_that_are_quantized(form: str, dtype: str) -> None:
    check(lifted([floats("a", 40, dtype), floats("bb", 33, dtype)], form), 3)


@pytest.mark.parametrize("half", [32, 40, 64])
def test_gates_and_ups(half: int) -> None:
    check(lifted([floats("gate", half), floats("up", half)], "w4g32", pack_gated_codes), -(-half // 16))


@pytest.mark.parametrize("text", [" 3 ", " 3 gated"])
def test_experts(text: str) -> None:
    file = File({f"e{i}": "Q4_0" for i in range(3)}, (64, WIDTH))
    check(lifted([stacked(list(file.tensors.values()))], "w4g32", pack_expert_codes, text), 3)


def test_overflows_of_all_strips_are_counted_together() -> None:
    tensor = floats("a", 96, "float32", 1e7)
    weight = lifted([tensor], "w4g32")
    assert weight.strips is not None
    for strip in weight.strips():
        strip()
    by_strips = overflow_notes([weight])
    whole = lifted([tensor], "w4g32")
    whole.compute()
    assert by_strips == overflow_notes([whole]) and "the scales of 1536 groups" in by_strips[0]


def test_a_shard_has_the_bytes_of_its_weights(tmp_path: Path) -> None:
    weight = lifted([floats("a", 200)], "w4g32")
    [place], [file] = write_weights(tmp_path, [weight], lambda num_bytes: None)
    assert (tmp_path / file.name).read_bytes()[place.offset :] == weight.compute().tobytes()


def test_what_fails_in_a_strip_fails(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        write_weights(tmp_path, [lifted([replace(floats("a", 200), load=fail)], "w4g32")], lambda num_bytes: None)
