"""`cupola inspect --roofline`, of a configuration alone: its figures are those of the model's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import NOT_HASHED
from cupola.runtime.errors import ArtifactError
from cupola.runtime.measure.machines import MACHINES

Capture = pytest.CaptureFixture[str]
LAYERS, HIDDEN, FFN, VOCAB, HEADS, KV_HEADS, DIM = 3, 64, 96, 320, 4, 2, 16
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN, "head_dim": DIM,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
MATRICES = LAYERS * (HIDDEN * DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * FFN) + VOCAB * HIDDEN


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("outline")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return cupola.compile(folder / "config.json", target="cuda:sm_80", quant="bf16", out=folder / "artifact")


def reckoned(artifact: Artifact, capsys: Capture, *options: str) -> dict[str, Any]:
    assert run(["inspect", str(artifact.path), "--roofline", "h100", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("streams", "context"), [(1, 1), (1, 200), (5, 33)])
def test_a_decode_step(outline: Artifact, streams: int, context: int, capsys: Capture) -> None:
    [library] = reckoned(outline, capsys, "--max-num-seqs", str(streams), "--context", str(context))["libraries"]
    step = library["decode"]
    kv_bytes, heads = streams * LAYERS * 2 * KV_HEADS * DIM * 2, streams * LAYERS * HEADS * 2 * DIM
    assert step["kv_bytes"] == kv_bytes * (context + 1)  # the new ones are written
    assert step["num_operations"] == 2 * (streams * MATRICES + heads * context)
    norms, rows = 4 * (2 * LAYERS + 1) * HIDDEN, streams * 2 * HIDDEN
    least = 2 * MATRICES + norms + rows
    assert least <= step["weight_bytes"] < 1.1 * least  # such small matrices are padded
    assert 0 < step["other_bytes"] < 50 * streams * LAYERS * 4 * (HIDDEN + FFN + VOCAB)
    by_kernel = {kernel["name"].split("_")[0]: kernel["cost"]["num_launches"] for kernel in step["kernels"]}
    assert by_kernel["paged"] == LAYERS  # one launch, where every sequence brings one token
    assert step["num_launches"] - sum(k["cost"]["num_launches"] for k in step["kernels"] if k["num_calls"] < LAYERS) == 5 * LAYERS


def test_a_prompt(outline: Artifact, capsys: Capture) -> None:
    prompt = reckoned(outline, capsys, "--prompt", "100", "--max-num-batched-tokens", "64")["libraries"][0]["prompt"]
    pairs = LAYERS * HEADS * 2 * DIM * (100 * 101 // 2)
    after = HIDDEN * DIM * HEADS + 3 * HIDDEN * FFN  # of the last layer, for the last token of each step alone
    whole = 100 * (MATRICES - VOCAB * HIDDEN - after) + 2 * (after + VOCAB * HIDDEN)
    assert prompt["num_operations"] == 2 * (whole + pairs)
    assert prompt["kv_bytes"] == LAYERS * 2 * KV_HEADS * DIM * 2 * (64 + 100 + 100)  # 64, then 100 are read; 100 are written
    attention = next(kernel for kernel in prompt["kernels"] if kernel["name"].startswith("paged_attention"))
    assert (attention["num_calls"], attention["cost"]["num_launches"]) == (
        2 * LAYERS,
        6 * LAYERS,
    )  # to append, for tokens alone, and for others


def test_the_bound_and_the_model(outline: Artifact, capsys: Capture) -> None:
    found, h100 = reckoned(outline, capsys), MACHINES["h100"]
    step, prompt = found["libraries"][0]["decode"], found["libraries"][0]["prompt"]
    assert found["machine"]["bytes_per_second"] == 3.35e12
    assert step["bound_seconds"] == pytest.approx(step["num_bytes"] / 3.35e12) and step["bound_by"] == "memory"
    assert step["bound_tokens_per_second"] == pytest.approx(1 / step["bound_seconds"])
    for work in (step, prompt):
        costs = [(kernel["cost"], h100.peak(kernel["arithmetic"])) for kernel in work["kernels"]]
        sizes = [(sum(size for name, size in cost.items() if name.endswith("bytes")), cost, peak) for cost, peak in costs]
        alone = sum(max(size / h100.bytes_per_second, cost["num_operations"] / peak) for size, cost, peak in sizes)
        assert work["seconds"] == pytest.approx(alone + 1.3e-6 * work["num_launches"])
        assert work["share_of_bandwidth"] == pytest.approx(work["num_bytes"] / h100.bytes_per_second / work["seconds"])
    assert sum(kernel["cost"]["num_launches"] for kernel in step["kernels"]) == step["num_launches"]


def test_people_read_it(outline: Artifact, capsys: Capture) -> None:
    assert run(["inspect", str(outline.path), "--roofline", "mi300x", "--max-num-seqs", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mi300x: 5300 GB/s, 1307 Tflop/s in matrix units, 163 outside of them; 2.5 µs a launch\n")
    assert "cuda:sm_80: a step of 8 streams, each of 256 tokens" in out and "cuda:sm_80: a prompt of 256 tokens, 256 in a step" in out
    assert out.count("bound by memory") == 2 and "of the matrix peak" in out


def test_what_is_out_of_range_is_refused(outline: Artifact, capsys: Capture) -> None:
    for option, field in (
        (["--roofline", "abacus"], "roofline: is 'abacus' (take one of a100, h100"),
        (["--prompt", "257"], "prompt: is 257"),
    ):
        assert run(["inspect", str(outline.path), "--roofline", "h100", *option]) == 2
        assert field in capsys.readouterr().err


def test_an_outline_takes_no_room_and_does_not_run(outline: Artifact, capsys: Capture) -> None:
    [weights] = [file for file in outline.manifest.files if file.sha256 == NOT_HASHED]
    status = (outline.path / weights.name).stat()
    assert status.st_size == weights.num_bytes > 2 * MATRICES and status.st_blocks * 512 < weights.num_bytes // 4
    assert any("it has no weights, and can be inspected, not run" in note for note in outline.manifest.notes)
    with pytest.raises(ArtifactError, match="holds no weights: the model was compiled from its configuration alone"):
        Artifact.open(outline.path)


def test_a_configuration_that_makes_no_model_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": "wide"}))
    assert run(["compile", str(tmp_path / "config.json"), "--target", "cpu"]) == 2
    assert "config.json: hidden_size" in capsys.readouterr().err
