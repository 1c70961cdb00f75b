"""The architectures with experts that are read: transformers rebuilds each with the same logits, and experts keep their blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from cupola.compiler.sources import open_source
from cupola.runtime.errors import SourceError
from tests.compiler.sources.gguf_files import Case, Tensors, Values, Writer, assert_rebuilt, keep, tiny, write

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def halves(name: str, values: Values, config: Any) -> Tensors:
    """Gates and ups, which checkpoints have apart, as the converter stacks them."""
    if ".experts." not in name:
        return {name: values}
    if not name.endswith("gate_up_proj"):
        return {f"{name}.weight": values}
    gate, up = np.split(values, 2, axis=1)
    return {name.replace("gate_up_proj", "gate_proj.weight"): gate, name.replace("gate_up_proj", "up_proj.weight"): up}


def in_turns(name: str, values: Values, config: Any) -> Tensors:
    """`GptOssModel`: matrices lie turned, gates and ups in turns, and so their biases."""
    if name.endswith("sinks"):
        return {f"{name}.weight": values}
    if ".experts." not in name:
        return {name: values}
    module, _, end = name.rpartition(".")
    turned, kind = (values, "bias") if end.endswith("_bias") else (values.swapaxes(1, 2), "weight")
    if end.startswith("down"):
        return {f"{module}.down_proj.{kind}": turned}
    return {f"{module}.gate_proj.{kind}": turned[:, ::2], f"{module}.up_proj.{kind}": turned[:, 1::2]}


def widths(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def gpt_oss(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(config.rope_parameters["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(config.rope_parameters["beta_slow"])


YARN = {
    "rope_type": "yarn", "rope_theta": 50000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
MIXTURES = {
    "qwen2moe": Case("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48}, keep, widths, halves),
    "qwen3moe": Case("qwen3moe", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, keep, widths, halves),
    "gpt-oss": Case(
        "gpt-oss", "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_parameters": YARN},
        keep, gpt_oss, in_turns,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_transformers_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    assert_rebuilt(MIXTURES[name], tmp_path / "tiny.gguf")


def gate_above_up(tensors: Tensors) -> Tensors:
    """As `convert_hf_to_gguf.py --fuse-gate-up-exps` writes them."""
    gates = [name for name in tensors if "ffn_gate_exps" in name]
    ups = {name: tensors.pop(name.replace("gate", "up")) for name in gates}
    return tensors | {name.replace("gate", "gate_up"): np.concatenate((tensors.pop(name), ups[name]), axis=1) for name in gates}


def one_by_one(tensors: Tensors) -> Tensors:
    """As files of 2023 have them."""
    single = {}
    for name, values in tensors.items():
        stacks = {name.replace("_exps", f".{number}"): each for number, each in enumerate(values)}
        single |= stacks if "_exps" in name else {name: values}
    return single


@pytest.mark.parametrize("form", [gate_above_up, one_by_one])
@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
def test_experts_are_the_same_in_every_form(name: str, form: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    case, model = MIXTURES[name], tiny(MIXTURES[name])
    usual, other = (open_source(write(tmp_path / f"{number}.gguf", case, model, drop=each)) for number, each in enumerate((dict, form)))
    assert usual.tensors.keys() == other.tensors.keys() and usual.config == other.config
    for tensor, same in zip(usual.tensors.values(), (other.tensors[name] for name in usual.tensors), strict=True):
        np.testing.assert_array_equal(tensor.load(), same.load())


@pytest.mark.parametrize(("name", "kind"), [("qwen3moe", Kind.Q4_0), ("gpt-oss", Kind.MXFP4)])
def test_experts_keep_their_blocks(name: str, kind: Kind, tmp_path: Path) -> None:
    """Of every matrix, in the order of the model's rows."""
    case, model = MIXTURES[name], tiny(MIXTURES[name])
    ends = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
    path = write(tmp_path / "tiny.gguf", case, model, ends, kind)
    source, rounded = open_source(path), {info.name: gguf.dequantize(info.data, info.tensor_type) for info in gguf.GGUFReader(path).tensors}
    assert source.notes[:-1] == ()
    for layer in range(3):
        gate, up, down = (rounded[f"blk.{layer}.{end}"] for end in ends)
        rows = np.stack((gate, up), axis=2).reshape(4, -1, 64) if name == "gpt-oss" else np.concatenate((gate, up), axis=1)
        for end, expected in (("gate_up_proj", rows), ("down_proj", down)):
            tensor = source.tensors[f"model.layers.{layer}.mlp.experts.{end}"]
            assert tensor.blocks is not None and tensor.stored_as == kind.name and tensor.is_turned == (name == "gpt-oss")
            np.testing.assert_array_equal(tensor.load(), expected.swapaxes(1, 2) if tensor.is_turned else expected)
            np.testing.assert_array_equal(tensor.blocks().values(), expected.reshape(-1, expected.shape[2]))


def test_gates_and_ups_of_two_types_become_floats(tmp_path: Path) -> None:
    case, model = MIXTURES["qwen3moe"], tiny(MIXTURES["qwen3moe"])
    source = open_source(write(tmp_path / "tiny.gguf", case, model, ("ffn_up_exps.weight",)))
    tensor = source.tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert tensor.blocks is None and tensor.format is None and tensor.stored_as == ""
    np.testing.assert_allclose(tensor.load(), model.model.layers[0].mlp.experts.gate_up_proj.detach().numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (lambda tensors: without(tensors, "blk.1.ffn_up_exps.weight"), r"blk\.1\.ffn_up_exps\.weight: is missing"),
        (lambda tensors: without(one_by_one(tensors), "blk.1.ffn_up.2.weight"), r"blk\.1\.ffn_up\.2\.weight: is missing"),
        (
            lambda tensors: {**tensors, "blk.1.ffn_up_exps.weight": np.zeros((3, 32, 64), "f")},
            r"blk\.1\.ffn_gate_exps\.weight: does not fit its neighbour: \[4, 32, 64\] and \[3, 32, 64\]",
        ),
        (
            lambda tensors: {**tensors, "blk.1.ffn_gate_up_exps.weight": np.zeros((4, 64, 64), "f")},
            r"blk\.1\.ffn_gate_up_exps\.weight: is there twice: as it is, and as ffn_gate_exps and ffn_up_exps",
        ),
        (
            lambda tensors: {**one_by_one(tensors), "blk.1.ffn_up.2.weight": np.zeros((16, 64), "f")},
            r"blk\.1\.ffn_up\.2\.weight: has the shape \[16, 64\], where the others have \[32, 64\]",
        ),
    ],
)
def test_damaged_experts_are_refused_by_name(drop: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    case = MIXTURES["qwen3moe"]
    with pytest.raises(SourceError, match=message):
        open_source(write(tmp_path / "tiny.gguf", case, tiny(case), drop=drop))


def without(tensors: Tensors, name: str) -> Tensors:
    return {each: values for each, values in tensors.items() if each != name}
