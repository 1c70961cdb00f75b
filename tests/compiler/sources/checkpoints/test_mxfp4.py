"""MXFP4 of experts, against transformers' own unpacking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.checkpoints import unpack_checkpoint
from cupola.compiler.sources.checkpoints.base import Parts
from cupola.compiler.sources.checkpoints.mxfp4 import experts
from cupola.compiler.sources.safetensors_file import read_safetensors
from cupola.runtime.errors import SourceError

NAME = "model.layers.0.mlp.experts.gate_up_proj"


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 10, 2, 16)).astype("uint8")
    return {f"{NAME}_blocks": blocks, f"{NAME}_scales": random.integers(100, 140, (3, 10, 2)).astype("uint8")}


def unpacked(folder: Path, stored: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    save_file(stored, folder / "m.safetensors")
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
    return unpack_checkpoint(config, read_safetensors(folder / "m.safetensors"), {}, "config.json").tensors


def test_values_are_those_of_transformers(tmp_path: Path) -> None:
    stored = tensors()
    parameter = unpacked(tmp_path, stored)[NAME]
    blocks, scales = (torch.from_numpy(value) for value in stored.values())
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    assert parameter.shape == expected.shape == (3, 64, 10)
    np.testing.assert_array_equal(parameter.load(), expected)


def test_the_matrices_of_experts_are_codes_in_groups_of_32(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    found = read_safetensors(tmp_path / "m.safetensors")
    matrices = experts(Parts(NAME, {end: found[NAME + end] for end in ("_blocks", "_scales")}, "m"))
    assert matrices.format.name == "w4g32-e2m1-bf16"
    turned = matrices.values().reshape(3, 10, 64).swapaxes(1, 2)
    parameter = unpacked(tmp_path, tensors())[NAME]
    np.testing.assert_array_equal(parameter.load(), turned)
    assert parameter.format == matrices.format and parameter.is_turned and parameter.blocks is not None
    np.testing.assert_array_equal(parameter.blocks().codes, matrices.codes)


def test_damaged_scales_are_named(tmp_path: Path) -> None:
    stored = tensors()
    with pytest.raises(SourceError, match=f"{NAME}_scales: has the shape"):
        unpacked(tmp_path, {**stored, f"{NAME}_scales": stored[f"{NAME}_scales"][:2]})
    with pytest.raises(SourceError, match=f"{NAME}_scales: is missing"):
        unpacked(tmp_path, {f"{NAME}_blocks": stored[f"{NAME}_blocks"]})
