"""`cupola bench --kernels`: what it says of bytes and operations is what the model's configuration says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.models import find_family
from cupola.targets.cpu.isa import ISAS, runs_here
from tests.runtime.tiny_artifact import make_artifact

Capture = pytest.CaptureFixture[str]


def compile_tiny(folder: Path, family: str, target: str = "cpu", quant: str = "f32") -> cupola.Artifact:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **find_family(family).tiny)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    return cupola.compile(folder / "model", out=folder / "artifact", quant=quant, target=target)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    return compile_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    return compile_tiny(tmp_path_factory.mktemp("mistral"), "mistral")


def work_of(artifact: cupola.Artifact, test: cupola.SpeedTest) -> tuple[int, int, cupola.Profile]:
    """Bytes and operations of all kernels."""
    found = cupola.profile(cupola.Benchmark(artifact, [test]), test, 1)
    return sum(kernel.num_bytes for kernel in found.kernels), sum(kernel.num_operations for kernel in found.kernels), found


@pytest.mark.by_turns
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(("depth", "streams"), [(0, 1), (48, 1), (48, 3)])
def test_operations_and_bytes_of_decoding(family: str, depth: int, streams: int, request: pytest.FixtureRequest) -> None:
    artifact, tiny = request.getfixturevalue(family), find_family(family).tiny
    layers, hidden, ffn, vocab = (tiny[f"{name}"] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = tiny["num_attention_heads"], tiny["num_key_value_heads"]
    head_dim, window = hidden // heads, tiny.get("sliding_window", 1 << 20)
    num_bytes, num_operations, found = work_of(artifact, cupola.SpeedTest("tg", 4, depth, streams))
    matrices = layers * (hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * ffn) + vocab * hidden
    # Any of the four steps may have been the fastest; each has a key more than the one before.
    expected = {2 * streams * (matrices + layers * heads * 2 * head_dim * min(depth + step, window)): step for step in (1, 2, 3, 4)}
    assert num_operations in expected
    least = 4 * matrices + streams * layers * 2 * kv_heads * head_dim * 4 * (min(depth + expected[num_operations], window) + 1)
    activations = 40 * layers * streams * 4 * (hidden + ffn)
    assert least < num_bytes < least + activations
    assert max(found.kernels, key=lambda kernel: kernel.num_bytes).num_calls in (1, layers)


def multiplications_of_a_prompt(tiny: Mapping[str, Any], num_tokens: int) -> int:
    """Of the layers' matrices: what follows the last attention is for the last token alone."""
    hidden, ffn, heads, kv_heads = (tiny[x] for x in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    head_dim, layers = hidden // heads, tiny["num_hidden_layers"]
    before, after = hidden * head_dim * (heads + 2 * kv_heads), hidden * head_dim * heads + 3 * hidden * ffn
    return num_tokens * layers * before + (num_tokens * (layers - 1) + 1) * after


def test_operations_of_a_prompt(mistral: cupola.Artifact) -> None:
    tiny = find_family("mistral").tiny
    _, num_operations, _ = work_of(mistral, cupola.SpeedTest("pp", 20, 16))
    pairs = tiny["num_hidden_layers"] * tiny["hidden_size"] * 2 * 20 * tiny["sliding_window"]
    assert num_operations == 2 * (multiplications_of_a_prompt(tiny, 20) + tiny["vocab_size"] * tiny["hidden_size"] + pairs)


@pytest.mark.parametrize("streams", [1, 3])
def test_states_are_read_and_written(streams: int, tmp_path: Path) -> None:
    tiny = find_family("mamba2").tiny
    _, _, found = work_of(compile_tiny(tmp_path, "mamba2"), cupola.SpeedTest("tg", 2, 8, streams))
    (recurrence,) = (kernel for kernel in found.kernels if kernel.name.startswith("linear_attention"))
    state = tiny["num_heads"] * tiny["head_dim"] * tiny["state_size"] * 4
    least = tiny["num_hidden_layers"] * streams * 2 * state
    assert recurrence.num_calls == tiny["num_hidden_layers"]
    assert least < recurrence.num_bytes < 1.5 * least  # with what a token brings, which is little beside the state


def test_quantized_layers_are_held_to_the_peak_of_int8(tmp_path: Path) -> None:
    artifact, tiny = compile_tiny(tmp_path, "llama", quant="w8a8", target="cpu:batch-invariant"), find_family("llama").tiny
    _, _, found = work_of(artifact, cupola.SpeedTest("pp", 20))
    in_int8 = sum(kernel.num_operations for kernel in found.kernels if kernel.arithmetic == "int8")
    assert in_int8 == 2 * (multiplications_of_a_prompt(tiny, 20) + tiny["vocab_size"] * tiny["hidden_size"])


def test_looking_changes_nothing(llama: cupola.Artifact) -> None:
    llm = cupola.LLM(llama, enable_prefix_caching=False)
    executor, seen = llm.engine.executor, []
    plain = llm.logits(list(range(40)))
    with executor.clocked(lambda nanoseconds, _: seen.append(nanoseconds)):
        watched = llm.logits(list(range(40)))
    assert np.array_equal(plain, watched) and np.array_equal(plain, llm.logits(list(range(40))))
    assert len(seen) == 1 and len(seen[0]) == len(executor.plan.calls) and min(seen[0]) > 0
    assert {call.kernel for call in executor.plan.calls} == {kernel.name for kernel in llama.manifest.kernels}


def test_json_adds_up(llama: cupola.Artifact, capsys: Capture) -> None:
    assert run(["bench", str(llama.path), "--kernels", "-p", "32", "-d", "16", "-b", "1,2", "-r", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["roofline"]["bytes_per_second"] > 0 and shown["roofline"]["operations_per_second"]["float32"] > 0
    assert [profile["test"] for profile in shown["profiles"]] == ["pp32 @ d16", "a step of tg @ d16", "a step of tg × 2 @ d16"]
    for profile in shown["profiles"]:
        assert profile["kernel_seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in profile["kernels"]))
        assert 0 < profile["model_seconds"] < profile["seconds"]
        for kernel in profile["kernels"]:
            assert kernel["bound_by"] in ("memory", "float32") and kernel["roofline_seconds"] > 0


def test_people_get_a_table_for_each(llama: cupola.Artifact, capsys: Capture) -> None:
    assert run(["bench", str(llama.path), "--kernels", "-p", "32", "-n", "8,9", "-r", "1"]) == 0
    out = capsys.readouterr().out
    assert "the machine reads memory at" in out and "multiplies float32 at" in out
    titles = [line.partition(":")[0] for line in out.splitlines() if "tokens/s" in line]
    assert titles == ["pp32", "a step of tg", "a step of tg × 16"]
    for name in ("all kernels", "around them", "scheduling and sampling"):
        assert out.count(f"| {name} |") + out.count(f" {name} |") >= 3
    first: list[Any] = [line for line in out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in first[:5]}) == 1


def test_an_artifact_without_kernels_in_its_manifest_is_refused(tmp_path: Path, capsys: Capture) -> None:
    artifact = make_artifact(tmp_path / "tiny")
    assert run(["bench", str(artifact.path), "--kernels", "-p", "8", "-b", "1"]) == 2
    assert "kernels: the artifact has no probes (compile the model again)" in capsys.readouterr().err


HERE = [isa.name for isa in ISAS if runs_here(isa)]


@pytest.mark.by_turns
@pytest.mark.parametrize("names", [HERE[i : i + 2] for i in range(0, len(HERE), 2)], ids=str)
def test_another_instruction_set_of_the_artifact(names: list[str], tmp_path: Path, capsys: Capture) -> None:
    compile_tiny(tmp_path, "llama", target=",".join(f"cpu:{name}" for name in names))
    for name in names:
        assert run(["bench", str(tmp_path / "artifact"), "-p", "8", "-n", "0", "-r", "1", "--device", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["target"] == f"cpu:{name}"
        assert run(["bench", str(tmp_path / "artifact"), "-p", "8", "-n", "0", "-r", "1", "--device", name, "--kernels"]) == 0
        assert "multiplies float32 at" in capsys.readouterr().out
    assert run(["bench", str(tmp_path / "artifact"), "-p", "8", "-n", "0", "--device", "abacus"]) == 2
    assert "device: is 'abacus'" in capsys.readouterr().err
