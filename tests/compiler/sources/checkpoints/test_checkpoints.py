"""Quantized checkpoints: values as the formats' own arithmetic gives them, and damaged ones that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.checkpoints import Unpacked, methods, unpack_checkpoint
from cupola.compiler.sources.safetensors_file import read_metadata, read_safetensors
from cupola.runtime.errors import InputError, SourceError, UnsupportedError
from tests.quantized_checkpoints import KINDS, Kind

MODULE, SHAPE = "model.layers.0.self_attn.q_proj", (96, 64)
SPARE = {".input_scale", ".channel_wise"}


def weight(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    random = np.random.default_rng(3)
    return (random.normal(size=shape) * random.uniform(0.01, 0.2, (shape[0], 1)) + random.uniform(-0.02, 0.05, (shape[0], 1))).astype(
        "float32"
    )


def unpacked(folder: Path, kind: Kind, tensors: dict[str, np.ndarray], **settings: Any) -> Unpacked:
    named = {MODULE + end: np.ascontiguousarray(value) for end, value in tensors.items()}
    save_file({**named, "model.norm.weight": np.ones(4, "float32")}, folder / "m.safetensors", metadata=kind.metadata(f"{MODULE}.weight"))
    found = read_safetensors(folder / "m.safetensors")
    return unpack_checkpoint(
        {"quantization_config": kind.settings | settings}, found, read_metadata(folder / "m.safetensors"), "config.json"
    )


def in_place(tensor: LazyTensor) -> np.ndarray:
    """The values of a tensor's blocks, each where it belongs."""
    assert tensor.blocks is not None
    values = tensor.blocks().values()[:, : tensor.shape[1]]
    if tensor.order is None:
        return values
    placed = np.empty_like(values)
    placed[:, tensor.order] = values
    return placed


@pytest.mark.parametrize("name", KINDS)
def test_values_are_the_formats_own(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    tensors, expected = kind.write(weight())
    model = unpacked(tmp_path, kind, tensors)
    assert set(model.tensors) == {f"{MODULE}.weight", "model.norm.weight"} and "quantization_config" not in model.config
    tensor = model.tensors[f"{MODULE}.weight"]
    assert tensor.shape == SHAPE and tensor.dtype == "float32" and model.method
    loaded = tensor.load()
    np.testing.assert_allclose(loaded, expected, rtol=1e-6, atol=1e-7 * abs(expected).max())
    assert (tensor.order is not None) == ("act-order" in name)
    assert (tensor.format.name if tensor.format else "") == kind.format
    if tensor.format is not None:
        assert tensor.blocks is not None and tensor.blocks().format == tensor.format
        np.testing.assert_array_equal(in_place(tensor), loaded)


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_part_is_named(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    whole, _ = kind.write(weight())

    def check(tensors: dict[str, np.ndarray], part: str) -> None:
        with pytest.raises(InputError) as caught:
            for tensor in unpacked(tmp_path, kind, tensors).tensors.values():
                if tensor.name.endswith("q_proj.weight"):
                    tensor.load()
        text = str(caught.value)
        assert "\n" not in text and ("config.json" in text or MODULE in text), text

    for part, value in whole.items():
        if part in kind.optional or part in SPARE or part.split(".")[-1] in {name.split(".")[-1] for name in kind.optional}:
            continue
        rest = {name: tensor for name, tensor in whole.items() if name != part}
        if rest.keys() & {".qweight", ".weight_packed", ".weight_scale", ".SCB", ".W_q", "._weight_qdata", ".weight.absmax"}:
            check(rest, part)
        check({**whole, part: value.astype("float64")}, part)
        if value.ndim and not (name == "compressed-tensors fp8" and part == ".weight"):  # a scale of the tensor is for any number of rows
            check({**whole, part: np.concatenate([value, value])}, part)


def test_every_method_has_a_kind() -> None:
    tried = {methods()[str(kind.settings["quant_method"])].title for kind in KINDS.values()}
    assert {method.title for method in methods().values()} - tried == {"MXFP4"}  # of experts: test_mxfp4


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gptq", {"bits": 5}, "quantization_config.bits: is 5"),
        ("gptq", {"bits": None}, "quantization_config.bits: is None"),
        ("gptq", {"bits": 8}, r"g_idx: has the shape \[64\], not \[32\]"),
        ("gptq", {"group_size": 64}, r"scales: has the shape \[2, 96\], not \[1, 96\]"),
        ("gptq", {"group_size": 0}, "group_size"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format: is 'marlin'"),
        ("gptq", {"dynamic": [1]}, "dynamic"),
        ("awq", {"version": "gemv"}, "version: is 'gemv'"),
        ("awq", {"bits": 3}, "bits: is 3"),
        ("awq", {"group_size": 64}, "scales"),
        ("compressed-tensors w4a16", {"format": "marlin-24"}, "format: is 'marlin-24'"),
        ("compressed-tensors w4a16", {"config_groups": {}}, "config_groups: is missing"),
        ("compressed-tensors w4a16", {"config_groups": {"a": {"targets": ["Linear"]}}}, "says nothing of weights"),
        ("compressed-tensors w4a16", {"config_groups": {"a": {"targets": 7, "weights": {}}}}, "targets: is 7"),
        ("compressed-tensors w4a16", {"config_groups": {"a": {"targets": ["re:(a+)+$"], "weights": {}}}}, "no simple regular expression"),
        (
            "compressed-tensors w4a16",
            {"config_groups": {"a": {"targets": ["re:" + 9 * ".*"], "weights": {}}}},
            "no simple regular expression",
        ),
        ("compressed-tensors w4a16", {"config_groups": {"a": {"targets": ["re:["], "weights": {}}}}, "no simple regular expression"),
        ("compressed-tensors w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ("compressed-tensors w4a16", {"transform_config": {"config_groups": {"a": {}}}}, "transform_config"),
        ("fp8 of blocks", {"weight_block_size": [48]}, "weight_block_size"),
        ("fp8 of blocks", {"weight_block_size": [48, 64]}, "weight_scale_inv"),
        ("fp8 of blocks", {"fmt": "e5m2"}, "fmt: is 'e5m2'"),
        ("modelopt nvfp4", {"quant_algo": "W4A8_AWQ"}, "quant_algo: is 'w4a8_awq'"),
        ("autoround", {"packing_format": "auto_round:fp8_static"}, "packing_format"),
        ("autoround", {"data_type": "mx_fp"}, "data_type"),
        ("gptq", {"quant_method": "aqlm"}, "is 'aqlm'.*GPTQ, .*HQQ"),
        ("gptq", {"quant_method": "hqq"}, "no tensor's name ends in .W_q"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    with pytest.raises(InputError, match=said):
        unpacked(tmp_path, kind, kind.write(weight())[0], **settings)


def test_what_nobody_reads_is_noted(tmp_path: Path) -> None:
    kind = KINDS["gptq"]
    notes = unpacked(tmp_path, kind, kind.write(weight())[0], dataset="c4", frobnicate=1).notes
    assert any("frobnicate" in note for note in notes) and not any("dataset" in note for note in notes)
    kind = KINDS["compressed-tensors fp8"]
    assert any("1 scales of activations are left out" in note for note in unpacked(tmp_path, kind, kind.write(weight())[0]).notes)


def test_a_field_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="quantization_config: is 7"):
        unpack_checkpoint({"quantization_config": 7}, {}, {}, "config.json")
    assert unpack_checkpoint({"quantization_config": None, "a": 1}, {}, {}, "config.json") == Unpacked({"a": 1}, {})


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    kind = KINDS["fbgemm fp8"]
    tensors, _ = kind.write(weight())
    tensors[".weight"].view("uint8")[3, 5] = 0x7F
    with pytest.raises(UnsupportedError, match="NaN"):
        unpacked(tmp_path, kind, tensors).tensors[f"{MODULE}.weight"].load()
    kind = KINDS["gptq act-order"]
    tensors, _ = kind.write(weight())
    tensors[".g_idx"][7] = 9
    with pytest.raises(SourceError, match="g_idx: names groups up to 9"):
        unpacked(tmp_path, kind, tensors)


@pytest.mark.parametrize("shape", [(96, 48), (64, 80)])
def test_rows_are_padded_to_whole_groups(shape: tuple[int, int], tmp_path: Path) -> None:
    for name in ("gptq act-order", "compressed-tensors w8a8, zeros", "fp8 of blocks", "bitsandbytes nf4", "fbgemm fp8", "hqq"):
        kind = KINDS[name]
        if name == "hqq" and shape[1] % 32:  # groups go on from row to row
            continue
        tensors, expected = kind.write(weight(shape))
        tensor = unpacked(tmp_path, kind, tensors).tensors[f"{MODULE}.weight"]
        np.testing.assert_allclose(tensor.load(), expected, rtol=1e-6, atol=1e-7 * abs(expected).max())
        assert tensor.blocks is not None and not tensor.blocks().values()[:, shape[1] :].any()


def test_groups_of_several_sizes_are_read_as_floats(tmp_path: Path) -> None:
    kind = KINDS["gptq asymmetric"]
    tensors, _ = kind.write(weight())
    groups = tensors[".g_idx"] = np.array([0] * 20 + [1] * 44, "int32")
    tensor = unpacked(tmp_path, kind, tensors).tensors[f"{MODULE}.weight"]
    codes = tensors[".qweight"].T.copy().view("uint8")
    codes = np.stack((codes & 15, codes >> 4), -1).reshape(SHAPE)
    zeros = tensors[".qzeros"].copy().view("uint8")
    zeros = (np.stack((zeros & 15, zeros >> 4), -1).reshape(-1, SHAPE[0]) + 1 & 15).T
    expected = tensors[".scales"].T.astype("float64")[:, groups] * (codes - zeros[:, groups].astype("float64"))
    assert tensor.format is None
    np.testing.assert_allclose(tensor.load(), expected, rtol=1e-6)


def test_every_method_is_documented() -> None:
    text = (Path(__file__).parents[4] / "docs" / "quantized_checkpoints.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]
    assert {row[0]: row[1].strip("`") for row in rows} == {method.title: method.names[0] for method in methods().values()}


def test_modules_are_told_apart_by_name(tmp_path: Path) -> None:
    kind = KINDS["compressed-tensors w4a16"]
    (group,) = kind.settings["config_groups"].values()
    other = {"targets": [r"re:.*\.(k|v)_proj$", "re:model.layers.[0-9]+.mlp.*"], "weights": {"num_bits": 8, "strategy": "channel"}}
    tensors, expected = kind.write(weight())
    model = unpacked(tmp_path, kind, tensors, config_groups={"a": other, "b": group})
    np.testing.assert_allclose(model.tensors[f"{MODULE}.weight"].load(), expected, rtol=1e-6)
    with pytest.raises(SourceError, match="weight_shape"):
        unpacked(tmp_path, kind, tensors, config_groups={"a": other | {"targets": [r"re:.*q_proj"]}, "b": group})


def test_empty_tensors_and_scaled_activations_are_refused(tmp_path: Path) -> None:
    for name in ("gptq", "awq", "fp8 of blocks", "torchao int8", "compressed-tensors w4a16"):
        tensors, _ = KINDS[name].write(weight())
        for part, value in tensors.items():
            if value.ndim == 2:
                with pytest.raises(SourceError, match=part):
                    unpacked(tmp_path, KINDS[name], {**tensors, part: value[:0]})
    tensors, _ = KINDS["awq"].write(weight())
    with pytest.raises(UnsupportedError, match="act.scales: divides activations"):
        unpacked(tmp_path, KINDS["awq"], {**tensors, ".act.scales": np.ones(4, "float16")})
