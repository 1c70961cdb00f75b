"""Which weights stay as their source has them."""

from __future__ import annotations

import numpy as np

from cupola.compiler.kept_weights import column_orders, kept_notes, kept_weights
from cupola.compiler.sources import LazyTensor, Source
from cupola.passes.schemes import SCHEMES
from cupola.targets.formats.format import WeightFormat
from cupola.targets.registry import get_target

TARGETS = [get_target("cpu:generic")]
ORDER = np.array([1, 0, 3, 2], "int32")


def tensor(name: str, kind: str, form: str = "", dtype: str = "float32", order: np.ndarray | None = None) -> LazyTensor:
    return LazyTensor(name, (2, 4), dtype, lambda: np.zeros((2, 4)), kind, WeightFormat.parse(form) if form else None, order=order)


WEIGHTS = {
    each.name: each
    for each in (
        tensor("four", "GPTQ of 4 bits", "w4g4z", order=ORDER),
        tensor("eight", "FP8 (E4M3)", "w8g4-e4m3-f32"),
        tensor("half", "BF16", dtype="bfloat16"),
        tensor("blocks", "bitsandbytes FP4"),
    )
}


def source(form: str) -> Source:
    return Source("m", form, "", {}, WEIGHTS, None, quantized_by="" if form == "gguf" else "GPTQ")


def kept(scheme: str, form: str = "huggingface") -> dict[str, str]:
    found = kept_weights(SCHEMES[scheme], source(form), WEIGHTS, TARGETS).storages
    return {name: storage.format.name if storage.format else storage.dtype for name, storage in found.items()}


def test_codes_stay_where_the_scheme_has_as_many_bits() -> None:
    four, eight = {"four": "w4g4z"}, {"eight": "w8g4-e4m3-f32"}
    assert kept("w4a8") == kept("w4a16-g128") == four and kept("w8a16") == four | eight and kept("f32") == kept("bf16") == {}
    assert kept("keep-a16") == kept("keep-a8") == four | eight | {"half": "bfloat16", "blocks": "float32"}


def test_of_ggufs_blocks_nothing_is_said_here() -> None:
    assert kept("w4a8", "gguf") == kept("keep-a16", "gguf") == {}


def test_orders_of_columns_become_parameters() -> None:
    found = kept_weights(SCHEMES["w4a16"], source("huggingface"), WEIGHTS, TARGETS)
    (label,) = set(found.orders.values())
    assert found.orders == {"four": label} and kept_weights(SCHEMES["f32"], source("huggingface"), WEIGHTS, TARGETS).orders == {}
    orders = column_orders(found, WEIGHTS)
    assert list(orders) == [label] and (orders[label].shape, orders[label].dtype) == ((4,), "int32")
    np.testing.assert_array_equal(orders[label].load(), ORDER)


def test_what_became_floats_is_noted() -> None:
    (note,) = kept_notes(SCHEMES["f32"], source("huggingface"), WEIGHTS, ())
    assert note.startswith("3 weights that come quantized, such as blocks, are stored as floats") and "keep-a16" in note
    assert kept_notes(SCHEMES["f32"], source("gguf"), WEIGHTS, ()) == []
