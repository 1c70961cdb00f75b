"""Which scheme `quant="auto"` is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cupola.compiler.auto_scheme import choose_scheme
from cupola.compiler.sources import LazyTensor, Source
from cupola.targets.formats.ggml import GGML_FORMATS
from cupola.targets.registry import get_target

DOT, NO_DOT = get_target("cpu:avx512vnni"), get_target("cpu:generic")


def source(*weights: tuple[str, int], keeps: bool = False) -> Source:
    """A source of two-dimensional weights, (type, rows), and a norm; `keeps`: that hands out their blocks."""
    shapes = {f"w{i}": (kind, (rows, 64)) for i, (kind, rows) in enumerate(weights)} | {"norm": ("F32", (10**6,))}
    tensors = {name: LazyTensor(name, shape, "float32", lambda: np.zeros(shape), kind) for name, (kind, shape) in shapes.items()}
    if keeps:
        tensors = {name: dataclasses.replace(tensor, format=GGML_FORMATS.get(tensor.stored_as)) for name, tensor in tensors.items()}
    return Source("m", "gguf", "", {}, tensors, None, None)


@pytest.mark.parametrize(
    ("weights", "with_dot", "without"),
    [
        ([("Q4_1", 9), ("Q8_0", 8)], "w4a8", "bf16"),
        ([("Q4_K", 5), ("Q6_K", 4)], "w4a8", "bf16"),
        ([("IQ3_XXS", 5), ("F16", 4)], "w4a8", "bf16"),
        ([("Q8_0", 9), ("F16", 8)], "w8a8", "bf16"),
        ([("BF16", 9)], "w8a8", "bf16"),
        ([("Q6_K", 9)], "w8a8", "bf16"),
    ],
)
def test_the_bits_of_most_weights_and_the_target_decide(weights: list[tuple[str, int]], with_dot: str, without: str) -> None:
    assert choose_scheme("auto", source(*weights), DOT)[0] == with_dot
    name, (note,) = choose_scheme("auto", source(*weights), NO_DOT)
    assert name == without
    reason = f"most weights come in {weights[0][0]}, and cpu:generic has no fast way to multiply integers of 8 bits"
    assert note == f"quant auto is {name} here: {reason}"


def test_a_scheme_that_is_asked_for_is_taken() -> None:
    assert choose_scheme("f16", source(("Q4_0", 1)), DOT) == ("f16", ())


def test_blocks_are_kept_where_there_are_kernels_for_them() -> None:
    blocks = source(("Q6_K", 9), ("F16", 8), keeps=True)
    for target, name in ((DOT, "keep-a8"), (NO_DOT, "keep-a16")):
        reason = f"the file's weights are quantized, and {target.spec.name} multiplies them as they are"
        assert choose_scheme("auto", blocks, target) == (name, (f"quant auto is {name} here: {reason}",))
    without = dataclasses.replace(NO_DOT, abilities=dataclasses.replace(NO_DOT.abilities, keeps_blocks=False))
    assert choose_scheme("auto", blocks, without)[0] == "bf16" and choose_scheme("w4a8", blocks, DOT) == ("w4a8", ())


def test_quantized_checkpoints_keep_their_weights() -> None:
    checkpoint = dataclasses.replace(source(("GPTQ of 4 bits", 1)), format="huggingface", quantized_by="GPTQ")
    assert choose_scheme("auto", checkpoint, DOT) == (
        "keep-a16",
        ("quant auto is keep-a16 here: the checkpoint's weights come quantized by GPTQ",),
    )
    without = dataclasses.replace(NO_DOT, abilities=dataclasses.replace(NO_DOT.abilities, keeps_blocks=False))
    assert choose_scheme("auto", checkpoint, without)[0] == "w8a16"
