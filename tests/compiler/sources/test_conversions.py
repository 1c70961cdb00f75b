"""Parameters of which a checkpoint holds the parts: each as transformers makes it, and what is damaged named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.core_model_loading import Chunk, Concatenate, ConversionOps, Interleave, MergeModulelist, PermuteForRope, Transpose

from cupola.compiler.sources import Naming, bind_weights, open_source, unused_tensors
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.checkpoints.blocks import integer_tensor, quantized
from cupola.compiler.sources.conversions import Conversion
from cupola.models import find_family
from cupola.runtime.errors import SourceError, UnsupportedError
from cupola.targets.formats.format import WeightFormat

GATE = "model.layers.0.block_sparse_moe.experts.1.w1.weight"  # as Mixtral's checkpoints have it


class Converter:
    """As much of transformers' `WeightConverter` as is read."""

    def __init__(self, sources: list[str], targets: list[str], *operations: ConversionOps) -> None:
        self.source_patterns, self.target_patterns, self.operations = sources, targets, operations


def tensors(count: int, *shape: int) -> list[torch.Tensor]:
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)))


def lazy(name: str, value: torch.Tensor, loaded: list[str] | None = None) -> LazyTensor:
    def load() -> Any:
        if loaded is not None:
            loaded.append(name)
        return value.numpy()

    return LazyTensor(name, tuple(value.shape), "float32", load, "F32")


FORMAT = WeightFormat(4, 32)


def of_codes(name: str, seed: int) -> LazyTensor:
    """A matrix [8, 64] of 4 bits."""
    random = np.random.default_rng(seed)
    codes, scales = random.integers(0, 16, (8, 64)).astype("uint8"), random.uniform(0.1, 1, (8, 2)).astype("float16")
    return quantized(name, (8, 64), "GPTQ of 4 bits", FORMAT, lambda: integer_tensor(FORMAT, codes, scales, 8))


# Chains of operations, by what goes in: tensors of each source pattern.
CHAINS: dict[str, tuple[list[ConversionOps], int, list[list[torch.Tensor]]]] = {
    "gates and ups of experts": ([MergeModulelist(0), Concatenate(1)], 1, [tensors(3, 4, 5), tensors(3, 4, 5)]),
    "experts turned": ([MergeModulelist(0), Transpose(1, 2)], 1, [tensors(3, 4, 5)]),
    "pairs of experts": ([MergeModulelist(0), Interleave(1)], 1, [tensors(3, 4, 5)]),
    "pairs": ([Interleave(0)], 1, [tensors(1, 6, 5)]),
    "halves beside each other": ([Interleave(0, inverse=True)], 1, [tensors(1, 6, 5)]),
    "matrices joined": ([Concatenate(0)], 1, [tensors(1, 4, 5), tensors(1, 2, 5), tensors(1, 3, 5)]),
    "a matrix cut": ([Chunk(0)], 3, [tensors(1, 6, 5)]),
    "experts cut": ([Chunk(1)], 2, [tensors(1, 3, 6, 5)]),
    "pairs cut": ([Interleave(1), Chunk(1)], 2, [tensors(1, 3, 6, 5)]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_operations_as_in_transformers(name: str) -> None:
    operations, num_targets, given = CHAINS[name]
    sources = [f"m.*.s{i}.weight" if len(each) > 1 else f"s{i}.weight" for i, each in enumerate(given)]
    targets = [f"t{i}.weight" for i in range(num_targets)]
    expected: dict[str, Any] = dict(zip(sources, [list(each) for each in given], strict=True))
    for operation in operations:
        expected = operation.convert(expected, source_patterns=sources, target_patterns=targets, model=None, config=None)
    conversion = Conversion(Converter(sources, targets, *operations), "layer.t0.weight", "file")
    for source, each in zip(sources, given, strict=True):
        for number, value in reversed(list(enumerate(each))):
            conversion.add(source, f"layer.{source}".replace("*", str(number)), lazy(f"{source} {number}", value))
    made = conversion.tensors({})
    assert list(made) == [f"layer.{target}" for target in targets]
    for target in targets:
        tensor, right = made[f"layer.{target}"], expected[target].numpy()
        np.testing.assert_array_equal(tensor.load(), right)
        assert tensor.shape == right.shape and tensor.dtype == "float32" and tensor.stored_as == "F32"
        for slab, part in zip(tensor.slabs, right, strict=False):
            np.testing.assert_array_equal(slab.load(), part)
        assert set(tensor.names) == {f"{source} {i}" for source, each in zip(sources, given, strict=True) for i in range(len(each))}


@pytest.mark.parametrize("name", ["gates and ups of experts", "experts turned"])
def test_quantized_experts_keep_their_codes(name: str) -> None:
    operations, _, given = CHAINS[name]
    sources = [f"m.*.s{i}.weight" for i in range(len(given))]
    conversion = Conversion(Converter(sources, ["t.weight"], *operations), "t.weight", "file")
    for i, source in enumerate(sources):
        for number in range(3):
            conversion.add(source, source.replace("*", str(number)), of_codes(f"{i} {number}", seed=10 * i + number))
    tensor = conversion.tensors({})["t.weight"]
    assert tensor.format == FORMAT and tensor.blocks is not None and tensor.is_turned == (name == "experts turned")
    matrices = tensor.load().swapaxes(1, 2) if tensor.is_turned else tensor.load()
    np.testing.assert_array_equal(tensor.blocks().values(), matrices.reshape(-1, 64))


def test_a_matrix_is_turned_only_where_its_shape_asks_for_it() -> None:
    value = tensors(1, 3, 4, 5)[0]
    for shape, turned in (((3, 4, 5), value), ((3, 5, 4), value.transpose(1, 2))):
        conversion = Conversion(Converter(["a"], ["b"], Transpose(1, 2, check_dims=True)), "b", "file")
        conversion.add("a", "a", lazy("a", value))
        np.testing.assert_array_equal(conversion.tensors({"b": shape})["b"].load(), turned.numpy())


def test_experts_are_read_one_by_one() -> None:
    loaded: list[str] = []
    conversion = Conversion(Converter(["e.*.gate", "e.*.up"], ["both"], MergeModulelist(0), Concatenate(1)), "both", "file")
    for number in (1, 0):
        for part in ("gate", "up"):
            conversion.add(f"e.*.{part}", f"e.{number}.{part}", lazy(f"{part} {number}", torch.ones(2, 3), loaded))
    first = conversion.tensors({"both": (2, 4, 3)})["both"].slabs[0]
    assert not loaded
    first.load()
    assert loaded == ["gate 0", "up 0"]


def test_an_unknown_operation_is_named() -> None:
    conversion = Conversion(Converter(["a"], ["b"], PermuteForRope()), "b", "file")
    conversion.add("a", "a", lazy("a", torch.ones(2, 2)))
    with pytest.raises(UnsupportedError, match="^file: b: is made of the checkpoint's tensors by PermuteForRope"):
        conversion.tensors({})


@functools.cache
def mixture(model_type: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **dict(find_family(model_type).tiny))).float()


def bind(folder: Path, model: Any) -> Any:
    source = open_source(folder)
    kept = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    shapes = {name: tuple(value.shape) for name, value in {**dict(model.named_parameters()), **kept}.items()}
    bound = bind_weights(source, shapes, Naming.of(model), {})
    assert unused_tensors(source, bound) == ()
    return bound


@pytest.fixture
def mixtral(tmp_path: Path) -> Callable[..., Any]:
    """Saves Mixtral, its tensors changed, and binds it."""
    model = mixture("mixtral")
    model.save_pretrained(tmp_path)

    def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
        held = load_file(tmp_path / "model.safetensors")
        change(held)
        save_file(held, tmp_path / "model.safetensors")
        return bind(tmp_path, model)

    return changed


def test_single_experts_bind(mixtral: Callable[..., Any]) -> None:
    model = mixture("mixtral")
    for change in (lambda held: None, lambda held: held.update({name: value.bfloat16() for name, value in held.items()})):
        bound = mixtral(change)
        for name, value in model.named_parameters():
            error = np.abs(bound[name].load().astype("float32") - value.detach().numpy()).max()
            assert error <= 2**-8 * value.abs().max()
    assert bound["model.layers.0.mlp.experts.gate_up_proj"].dtype == "bfloat16"


def test_whole_experts_bind_too(mixtral: Callable[..., Any]) -> None:
    model = mixture("mixtral")
    stacked = {name: value.detach().clone() for name, value in model.named_parameters() if ".experts." in name}

    def fuse(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if ".experts." in name]:
            del held[name]
        held.update(stacked)

    bound = mixtral(fuse)
    for name, value in stacked.items():
        np.testing.assert_array_equal(bound[name].load(), value.numpy())
    with pytest.raises(SourceError, match=r"experts\.gate_up_proj: is there twice: as it is, and as "):
        mixtral(lambda held: held.update({name: value for i in range(8) for name, value in single(i).items()}))


def single(number: int) -> dict[str, torch.Tensor]:
    prefix = GATE.replace(".1.w1.weight", f".{number}")
    return {f"{prefix}.w1.weight": torch.ones(128, 64), f"{prefix}.w3.weight": torch.ones(128, 64)}


def test_single_experts_of_a_text_model_inside_another_bind(tmp_path: Path) -> None:
    """The outer type has renamings of its own, and none of these conversions."""
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28}
    text = {**find_family("mixtral").tiny, "model_type": "mixtral"}
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava", text_config=text, vision_config=vision)).float()
    model.save_pretrained(tmp_path)
    assert "language_model.model.layers.0.block_sparse_moe.experts.1.w1.weight" in load_file(tmp_path / "model.safetensors")
    bound = bind(tmp_path, model)
    for name, value in model.named_parameters():
        np.testing.assert_array_equal(bound[name].load(), value.detach().numpy())


def test_damage_is_named(mixtral: Callable[..., Any]) -> None:
    name = r"model\.layers\.0\.mlp\.experts\.gate_up_proj"
    saved: dict[str, torch.Tensor] = {}

    def without(held: dict[str, torch.Tensor]) -> None:
        saved[GATE] = held.pop(GATE)

    with pytest.raises(SourceError, match=rf"{name}: is missing from the weights: no tensor is called \.experts\.1\.w1\.weight"):
        mixtral(without)
    with pytest.raises(SourceError, match=r"experts\.8\.w1\.weight: is one too many: the configuration has 8 experts"):
        mixtral(lambda held: held.update({GATE: saved[GATE], GATE.replace(".1.", ".8."): saved[GATE].clone()}))

    def twice(held: dict[str, torch.Tensor]) -> None:
        del held[GATE.replace(".1.", ".8.")]
        held[GATE.removeprefix("model.")] = saved[GATE].clone()

    with pytest.raises(SourceError, match=rf"is there twice: .* is the same part of {name}"):
        mixtral(twice)

    def misshapen(held: dict[str, torch.Tensor]) -> None:
        del held[GATE.removeprefix("model.")]
        held[GATE] = torch.ones(3, 64)

    with pytest.raises(SourceError, match=r"experts\.1\.w1\.weight: has the shape \[3, 64\], where the others have \[128, 64\]"):
        mixtral(misshapen)
