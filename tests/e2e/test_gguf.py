"""GGUF files of experts and of states, compiled and run: tokens and logits are those of transformers' model of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import cupola
from cupola.compiler.sources import open_source
from tests.compiler.sources.gguf_files import rebuilt, tiny, write
from tests.compiler.sources.test_gguf_mixtures import MIXTURES
from tests.compiler.sources.test_gguf_recurrent import RECURRENT

ENDS = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
PROMPT = np.random.default_rng(0).integers(3, 96, 20).tolist()


def assert_same_answer(path: Path, folder: Path, quant: str, bound: float) -> cupola.Artifact:
    """Compiles a file, and compares logits and greedily chosen tokens."""
    artifact = cupola.compile(path, out=folder, quant=quant, kv_dtype="f32")
    llm, model = cupola.LLM(artifact, kv_memory="64MB"), rebuilt(open_source(path))

    def reference(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0])

    expected = reference(PROMPT)
    assert np.abs(llm.logits(PROMPT) - expected).max() < bound * np.abs(expected).max()
    params = cupola.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    tokens = list(PROMPT)
    for token in llm.generate([PROMPT], params)[0].outputs[0].token_ids:
        row = reference(tokens)[-1]
        assert row[token] > row.max() - bound * np.abs(expected).max()
        tokens.append(token)
    return artifact


@pytest.mark.by_turns
@pytest.mark.parametrize(("name", "kind"), [("gpt-oss", Kind.MXFP4), ("qwen3moe", Kind.Q4_0)])
def test_experts_are_multiplied_as_they_come(name: str, kind: Kind, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", MIXTURES[name], tiny(MIXTURES[name]), ENDS, kind)
    artifact = assert_same_answer(path, tmp_path / "artifact", "keep-a16", 1e-4)
    (note,) = (note for note in artifact.manifest.notes if note.startswith("of the weights"))
    assert note == f"of the weights, 6 keep their {kind.name} blocks"


@pytest.mark.by_turns
def test_states_go_on_from_token_to_token(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", RECURRENT["qwen35"], tiny(RECURRENT["qwen35"]))
    assert_same_answer(path, tmp_path / "artifact", "f32", 1e-4)
