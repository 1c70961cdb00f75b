"""Models compiled for CUDA, run thread by thread on this CPU through the Python API: graphs, and memory of a device's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola
from cupola.runtime.device.accelerator import AcceleratorOutput
from cupola.runtime.engine import engine
from cupola.targets import registry
from cupola.targets.entry import EXECUTED, TargetEntry
from cupola.targets.ops import Argmax, BlockMaxima
from cupola.targets.registry import get_target
from tests.checkpoints import save_tiny
from tests.conftest import Compiled

PROMPT = "a b c d e f g"  # what comes next is clear
TINY_PARAMS = cupola.SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture(scope="module")
def artifact(tiny: Path) -> cupola.Artifact:
    return cupola.compile(tiny, out=tiny.with_name("artifact"), target="softgpu", quant="f32", block_size=4)


@pytest.fixture(scope="module")
def artifact_fp8(tiny: Path) -> cupola.Artifact:
    return cupola.compile(tiny, out=tiny.with_name("fp8"), target="softgpu", quant="f32", kv_dtype="fp8")


@pytest.fixture(scope="module")
def on_cpu(tiny: Path) -> cupola.Artifact:
    return cupola.compile(tiny, out=tiny.with_name("cpu"), target="cpu", quant="f32", block_size=4)


@pytest.fixture(scope="module")
def prompts(artifact: cupola.Artifact) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, artifact.manifest.model.vocab_size, length).tolist() for length in (11, 3, 7)]


def outputs(llm: cupola.LLM, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in llm.generate(prompts, TINY_PARAMS)]


def test_logits_match_transformers(tiny: Path, artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    import torch
    import transformers

    model, llm = transformers.AutoModelForCausalLM.from_pretrained(tiny).eval(), cupola.LLM(artifact, max_num_seqs=2)
    for prompt in prompts:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0].numpy()
        assert np.abs(llm.logits(prompt) - expected).max() < 1e-4


@pytest.mark.parametrize(("kv_dtype", "most"), [("f32", 1e-5), ("int8", 1e-3), ("fp8", 1e-3)])
def test_decoding_gives_what_a_prompt_gives(
    tiny: Path, prompts: list[list[int]], kv_dtype: str, most: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A token that comes alone brings its key by another way than those of a prompt, whose attention over codes is in bfloat16."""
    if kv_dtype == "int8":
        made = cupola.compile(tiny, out=tmp_path / "artifact", target="softgpu", quant="f32", kv_dtype=kv_dtype)
    else:
        made = request.getfixturevalue({"f32": "artifact", "fp8": "artifact_fp8"}[kv_dtype])
    llm = cupola.LLM(made, max_num_seqs=2)
    for prompt, output in zip(prompts, llm.generate(prompts, TINY_PARAMS), strict=True):
        chosen, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        assert steps is not None
        rows = llm.logits(prompt + chosen[:-1])[len(prompt) - 1 :].astype("float64")
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for row, step in zip(rows, steps, strict=True):
            assert max(abs(row[token] - entry.logprob) for token, entry in step.items()) < most


def test_k_and_v_in_fp8_are_those_of_transformers_rounded(tiny: Path, artifact_fp8: cupola.Artifact, prompts: list[list[int]]) -> None:
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def in_e4m3(x: Any) -> Any:
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()

    def attend(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return eager_attention_forward(module, query, in_e4m3(key), in_e4m3(value), *rest, **options)

    transformers.AttentionInterface.register("in_e4m3", attend)
    transformers.AttentionMaskInterface.register("in_e4m3", transformers.masking_utils.eager_mask)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="in_e4m3").eval()
    kv = artifact_fp8.manifest.kv
    assert kv.dtype == "float8_e4m3fn" and {pool.dtype for group in kv.groups for pool in group.pools} == {"uint8"}
    llm = cupola.LLM(artifact_fp8, max_num_seqs=1)
    for prompt in prompts:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0].numpy()
        off = np.abs(llm.logits(prompt) - expected) / np.abs(expected).max()
        assert np.median(off) < 1e-4 and off.max() < 2e-2  # a key that stands between two steps may go to either


def test_fp8_is_refused_by_name_where_there_are_no_kernels(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(cupola.UnsupportedError, match="target cpu:.*: can't store K and V as float8_e4m3fn"):
        cupola.compile(tiny, out=tmp_path / "artifact", target="cpu", kv_dtype="fp8")


SAMPLED = (
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"temperature": 0.8, "top_k": 40, "seed": 2},
    {"min_p": 0.05, "top_p": 0.95, "top_k": 100, "temperature": 1.3, "seed": 3},
    {"seed": 4},
    {"temperature": 0},
)
OTHERS = ({"logprobs": 2, "seed": 5}, {"repetition_penalty": 1.2, "seed": 6}, {"n": 2, "seed": 7})


def sampled(artifact: cupola.Artifact, prompts: list[list[int]], requests: Sequence[dict[str, float]]) -> list[list[list[int]]]:
    params = [cupola.SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "detokenize": False} | each) for each in requests]
    llm = cupola.LLM(artifact, max_num_seqs=len(params) + 1, seed=0)
    found = llm.generate([prompts[i % len(prompts)] for i in range(len(params))], params)
    return [[list(completion.token_ids) for completion in output.outputs] for output in found]


@pytest.mark.parametrize("patience", [0.0, 60.0])  # one step of the model at a time, or several
def test_sampled_tokens_are_the_cpus(
    artifact: cupola.Artifact, on_cpu: cupola.Artifact, prompts: list[list[int]], patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model draws them, and no logits come to the host, and where the host draws some."""
    monkeypatch.setattr(engine, "PATIENCE", patience)
    together = sampled(artifact, prompts, SAMPLED + OTHERS)
    assert together == sampled(on_cpu, prompts, SAMPLED + OTHERS)
    monkeypatch.delattr(AcceleratorOutput, "_row")
    assert sampled(artifact, prompts, SAMPLED) == sampled(on_cpu, prompts, SAMPLED) == together[: len(SAMPLED)]
    with pytest.raises(cupola.EngineError, match="_row"):
        sampled(artifact, prompts, OTHERS)


def test_a_model_that_does_not_draw_leaves_it_to_the_host(
    tiny: Path, artifact: cupola.Artifact, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    plain = replace(get_target("softgpu"), optional=(BlockMaxima, Argmax))
    registry.register_target(TargetEntry("plain", "", lambda: plain, lambda: True, EXECUTED))
    without = cupola.compile(tiny, out=tmp_path / "artifact", target="plain", quant="f32", block_size=4)
    names = [{spec.name for spec in each.manifest.function("forward").inputs} for each in (artifact, without)]
    assert names[0] - names[1] == {"draws"}
    assert sampled(without, prompts, SAMPLED) == sampled(artifact, prompts, SAMPLED)


def test_graphs_change_no_bit(artifact: cupola.Artifact, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def generate() -> list[object]:
        llm = cupola.LLM(artifact, max_num_seqs=3)
        return [[output.outputs[0].token_ids, output.outputs[0].logprobs] for output in llm.generate(prompts, TINY_PARAMS)]

    with_graphs = generate()
    monkeypatch.setenv("CUPOLA_NO_GRAPHS", "1")
    assert generate() == with_graphs


def test_preempted_and_swapped_sequences_go_on(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    expected = outputs(cupola.LLM(artifact, max_num_seqs=3), prompts)
    bytes_per_block = artifact.manifest.kv.bytes_per_block
    for swap in (0, 8):
        llm = cupola.LLM(artifact, max_num_seqs=3, kv_memory=9 * bytes_per_block, swap_memory=swap * bytes_per_block)
        found = llm.generate(prompts, TINY_PARAMS)
        assert [tuple(output.outputs[0].token_ids) for output in found] == expected
        assert sum(output.metrics.num_preemptions for output in found if output.metrics) > 0


def test_the_next_engine_goes_on_from_a_cache_on_disk(artifact: cupola.Artifact, prompts: list[list[int]], tmp_path: Path) -> None:
    prompt, expected, size = [max(prompts, key=len) * 4], [], artifact.manifest.kv.block_size
    for i in range(2):
        llm = cupola.LLM(artifact, max_num_seqs=3, cache_folder=tmp_path)
        [output] = llm.generate(prompt, TINY_PARAMS)
        expected.append(output.outputs[0].token_ids)
        assert output.num_cached_tokens == i * ((len(prompt[0]) - 1) // size * size)
        assert (llm.engine.stats().num_loaded > 0) == i
        llm.engine.close()
    assert expected[0] == expected[1]


@pytest.mark.by_turns
@pytest.mark.parametrize("quant", ["f16", "bf16", "w8a16", "w4a16"])
def test_a_real_model(quant: str, smollm2: Compiled, tmp_path: Path) -> None:
    compiled = cupola.compile("smollm2", target="softgpu", quant=quant, out=tmp_path / "artifact", context=64)
    params = cupola.SamplingParams(temperature=0, max_tokens=7)
    answers = [
        tuple(cupola.LLM(artifact, max_num_seqs=1, kv_memory="64MB").generate([PROMPT], params)[0].outputs[0].token_ids)
        for artifact in (compiled.path, smollm2.path)
    ]
    assert len(answers[0]) == 7 and answers[0] == answers[1]


def test_activations_of_8_bits_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(cupola.UnsupportedError, match=r"quant: is w4a8, and softgpu has no kernels .* \(take w4a16\)"):
        cupola.compile(tiny, out=tmp_path / "artifact", target="softgpu", quant="w4a8")


TOTAL = 4 << 30  # of softgpu's memory


def beside(artifact: cupola.Artifact, num_tokens: int) -> int:
    """Bytes of the weights, and at least of a step's logits and of its activations."""
    manifest = artifact.manifest
    weights = sum(4 * int(np.prod(weight.shape)) for weight in manifest.weights)
    return weights + num_tokens * manifest.function("forward").bytes_per_token + 4 * manifest.model.vocab_size


def test_k_and_v_get_what_the_share_leaves(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    kv, spare = artifact.manifest.kv, 1 << 16
    room = beside(artifact, 64) + 9 * kv.bytes_per_block
    llm = cupola.LLM(artifact, max_num_seqs=2, max_num_batched_tokens=64, gpu_memory_utilization=(room + spare) / TOTAL)
    [num_blocks] = llm.engine.executor.num_blocks
    assert 9 - spare // kv.bytes_per_block <= num_blocks <= 9 + spare // kv.bytes_per_block
    assert outputs(llm, prompts) == outputs(cupola.LLM(artifact, max_num_seqs=2, kv_memory="1MB"), prompts)
    [whole] = cupola.LLM(artifact, max_num_seqs=2, max_num_batched_tokens=64).engine.executor.num_blocks
    assert whole == 2 * artifact.manifest.model.context_length // kv.block_size  # all that two sequences can use


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), True, "0.9"])
def test_a_share_out_of_range_is_refused(artifact: cupola.Artifact, share: object) -> None:
    with pytest.raises(cupola.OptionError, match="gpu_memory_utilization: is .*, not above 0 and up to 1"):
        cupola.LLM(artifact, gpu_memory_utilization=share)  # type: ignore[arg-type]


def test_a_share_that_cannot_be_had_is_refused(artifact: cupola.Artifact) -> None:
    with pytest.raises(
        cupola.OptionError, match=r"gpu_memory_utilization: leaves -?\d+ MiB for K/V beside the weights and a step of 512 tokens"
    ):
        cupola.LLM(artifact, gpu_memory_utilization=1e-7)
    held = cupola.LLM(artifact, max_num_seqs=1, kv_memory="1MB")  # its memory is not free any more
    with pytest.raises(cupola.OptionError, match=r"gpu_memory_utilization: is 1, 4096 MiB, and of 4096 MiB \d+ are free"):
        cupola.LLM(artifact, gpu_memory_utilization=1)
    with pytest.raises(cupola.OptionError, match=r"kv_memory: is 4000 MiB, and gpu_memory_utilization leaves \d+"):
        cupola.LLM(artifact, kv_memory="4000MiB")
    assert held.engine.executor.num_blocks
