"""Models compiled for WebGPU, through the Python API, on the GPU of this machine: in CI Mesa's lavapipe, which is one on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.runtime.wgpu_native import has_adapter
from tests.checkpoints import save_tiny
from tests.conftest import Compiled

pytestmark = pytest.mark.skipif(not has_adapter(), reason="there is no Vulkan here; `make vulkan` installs one that runs on the CPU")
PROMPT = "a b c d e f g"  # what comes next is clear
BF16: tuple[tuple[str, dict[str, str]], ...] = (("webgpu", {}), ("cpu:generic", {"kv_dtype": "f16"}))
TINY_PARAMS = cupola.SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture(scope="module")
def artifact(tiny: Path) -> cupola.Artifact:
    return cupola.compile(tiny, out=tiny.with_name("artifact"), target="webgpu", quant="f32", block_size=4)


@pytest.fixture(scope="module")
def prompts(artifact: cupola.Artifact) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, artifact.manifest.model.vocab_size, length).tolist() for length in (11, 3, 7)]


def test_logits_match_transformers(tiny: Path, artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    import torch
    import transformers

    model, llm = transformers.AutoModelForCausalLM.from_pretrained(tiny).eval(), cupola.LLM(artifact)  # with what memory there is
    for prompt in prompts:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0].numpy()
        assert np.abs(llm.logits(prompt) - expected).max() < 1e-4


def test_decoding_gives_what_a_prompt_gives(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    """A token that comes alone brings its key by another way than those of a prompt."""
    llm = cupola.LLM(artifact, max_num_seqs=2)
    for prompt, output in zip(prompts, llm.generate(prompts, TINY_PARAMS), strict=True):
        chosen, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        assert steps is not None
        rows = llm.logits(prompt + chosen[:-1])[len(prompt) - 1 :].astype("float64")
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for row, step in zip(rows, steps, strict=True):
            assert max(abs(row[token] - entry.logprob) for token, entry in step.items()) < 1e-5


def test_preempted_and_swapped_sequences_go_on(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    """Blocks are copied from and to the host, and within one buffer."""

    def tokens(llm: cupola.LLM) -> list[list[int]]:
        outputs = llm.generate(prompts, TINY_PARAMS)
        counts.append(sum(output.metrics.num_preemptions for output in outputs if output.metrics))
        return [list(output.outputs[0].token_ids) for output in outputs]

    counts: list[int] = []
    expected, size = tokens(cupola.LLM(artifact, max_num_seqs=3)), artifact.manifest.kv.bytes_per_block
    for swap in (0, 8):
        assert tokens(cupola.LLM(artifact, max_num_seqs=3, kv_memory=9 * size, swap_memory=swap * size)) == expected
    assert counts[0] == 0 and min(counts[1:]) > 0


def test_samples_of_one_prompt_share_its_blocks(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    params = cupola.SamplingParams(temperature=0, n=2, max_tokens=6, ignore_eos=True, detokenize=False)
    first, second = cupola.LLM(artifact, max_num_seqs=2).generate([prompts[0]], params)[0].outputs
    assert first.token_ids == second.token_ids


@pytest.mark.by_turns
@pytest.mark.parametrize("quant", ["f16", "bf16", "w8a16", "w4a16"])
def test_a_real_model(quant: str, smollm2: Compiled, tmp_path: Path) -> None:
    compiled = cupola.compile("smollm2", target="webgpu", quant=quant, out=tmp_path / "artifact", context=64)
    params = cupola.SamplingParams(temperature=0, max_tokens=7)
    answers = [
        tuple(cupola.LLM(artifact, max_num_seqs=1, kv_memory="64MB").generate([PROMPT], params)[0].outputs[0].token_ids)
        for artifact in (compiled.path, smollm2.path)
    ]
    assert len(answers[0]) == 7 and answers[0] == answers[1]


def test_weights_of_bfloat16_give_what_they_give_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    """K and V are float16 then, which a note says."""
    artifacts = [cupola.compile(tiny, out=tmp_path / name, target=name, quant="bf16", **kv) for name, kv in BF16]
    assert [artifact.manifest.kv.dtype for artifact in artifacts] == ["float16", "float16"]
    assert "webgpu can't store them as bfloat16" in " ".join(artifacts[0].manifest.notes)
    logits = [cupola.LLM(artifact, max_num_seqs=1).logits([5, 3, 9, 11, 2, 7, 1, 4]) for artifact in artifacts]
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[1]).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "w4a8"}, r"quant: is w4a8, and webgpu has no kernels .* \(take w4a16\)"),
        ({"quant": "bf16", "kv_dtype": "bf16"}, r"target webgpu: can't store K and V as bfloat16 \(it can as float32, float16\)"),
        ({"quant": "f16", "kv_dtype": "int8"}, r"target webgpu: can't store K and V as int8 \(it can as float32, float16\)"),
    ],
    ids=["activations of 8 bits", "bf16", "int8"],
)
def test_what_wgsl_has_no_type_for_is_refused_by_name(options: dict[str, str], message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(cupola.UnsupportedError, match=message):
        cupola.compile(tiny, out=tmp_path / "artifact", target="webgpu", **options)
