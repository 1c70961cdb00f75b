"""Speculative decoding over a compiled model: the same answers as without, to the bits of their log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola
import cupola.runtime.engine.speculation as speculation
from cupola.models import find_family
from cupola.runtime.engine.proposers.function import FunctionProposer
from cupola.runtime.engine.proposers.several import SeveralProposers
from cupola.runtime.errors import OptionError
from tests.e2e.tiny_models import SIZES, tiny_model
from tests.runtime.tiny_artifact import make_artifact

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 2}, {"temperature": 0.0}, {"temperature": 0.7, "seed": 1, "logprobs": 1},
    {"temperature": 1.2, "seed": 2, "top_k": 9, "n": 2}, {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 0},
]  # fmt: skip


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is used, whatever this machine's times are."""
    monkeypatch.setattr(speculation, "MIN_GAIN", 0.0)
    monkeypatch.setattr(speculation.StepCosts, "table", lambda _, most: [1.0] * (most + 1))


def answers(llm: cupola.LLM, together: bool) -> list[object]:
    prompts = [np.random.default_rng(i).integers(4, 250, 5 + 7 * i).tolist() for i in range(4)]
    given = [cupola.SamplingParams(max_tokens=60, ignore_eos=True, detokenize=False, **kind) for kind in KINDS]
    jobs = [(prompt, params) for prompt in prompts for params in given]
    found = []
    for batch in [jobs] if together else [[job] for job in jobs]:
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt, _ in batch], [params for _, params in batch])
        found += [[(one.token_ids, one.logprobs) for one in output.outputs] for output in outputs]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speculative")
    tiny_model("llama", **{**SIZES, "num_hidden_layers": 2}).save_pretrained(path / "model")
    return cupola.compile(path / "model", out=path / "artifact", quant="f32").path


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[object]:
    return answers(cupola.LLM(folder, max_num_seqs=1, enable_prefix_caching=False), together=False)


@pytest.mark.parametrize("name", ["ngram", "suffix", "auto", "lookahead", "draft", "early-exit:1", "function"])
def test_answers_are_the_same(folder: Path, plain: list[object], eager: None, name: str) -> None:
    """Alone without drafts, and in a batch with them. As a draft model the model knows what it says itself, if it takes the likeliest."""
    given: dict[str, Any] = {"draft": f"draft:{folder}", "function": lambda token_ids, most: token_ids[-9:]}
    llm = cupola.LLM(folder, max_num_seqs=4, speculative=given.get(name, name))
    assert answers(llm, together=True) == plain
    assert llm.stats().num_accepted_tokens > (400 if name == "draft" else 50)
    assert llm.notes == ()  # K and V are float32


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("family", "quant", "kv_dtype"),
    [
        ("qwen2", "w4a8", "bf16"), ("qwen2", "w8a8", "int8"), ("qwen2", "w8a16", "f16"), ("qwen2", "bf16", "bf16"),
        ("lfm2", "w8a8", "bf16"), ("mamba", "f32", "f32"), ("bamba", "w4a8", "bf16"), ("qwen3_5_text", "w4a8", "int8"),
        ("granitemoehybrid", "w8a16", "bf16"),
    ],
)  # fmt: skip
def test_rows_have_the_bits_of_one(tmp_path: Path, eager: None, family: str, quant: str, kv_dtype: str) -> None:
    """On the best target of this machine, whichever way it multiplies: random tokens among those that come, from none to all of them.

    Models that carry a state compute what came again where not all of them do.
    """
    sizes = {**SIZES, "num_hidden_layers": 2} if family == "qwen2" else find_family(family).tiny
    tiny_model(family, **sizes).save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant=quant, kv_dtype=kv_dtype).path
    expected = answers(cupola.LLM(artifact, max_num_seqs=1, enable_prefix_caching=False), together=False)
    known, random = [token_ids for output in expected for token_ids, _ in output], np.random.default_rng(7)

    def propose(token_ids: list[int], most: int) -> list[int]:
        """Some of what comes after the last two tokens in an answer, and then anything."""
        found = [ids[i + 2 :] for ids in known for i in range(len(ids) - 2) if ids[i : i + 2] == token_ids[-2:]]
        draft = found[0][: random.integers(most + 1)] if found else []
        return [*draft, *random.integers(0, 250, random.integers(4)).tolist()][:most]

    llm = cupola.LLM(artifact, max_num_seqs=1, enable_prefix_caching=False, speculative=propose)
    assert answers(llm, together=False) == expected
    assert llm.stats().num_accepted_tokens > 100 and llm.notes == ()
    llm.engine.speculation.proposer = SeveralProposers(FunctionProposer(propose), FunctionProposer(propose))  # trees
    assert answers(llm, together=False) == expected


def test_a_draft_model_of_the_first_tokens(folder: Path, plain: list[object], eager: None, tmp_path: Path) -> None:
    """It guesses what the whole model says, as long as that is among them; by itself it is refused."""
    artifact = cupola.compile(folder.parent / "model", out=tmp_path / "draft", quant="f32", draft_vocabulary=150)
    assert artifact.manifest.model.vocab_size == 150 and any("the first 150 of 256 tokens" in note for note in artifact.manifest.notes)
    llm = cupola.LLM(folder, max_num_seqs=4, speculative=f"draft:{artifact.path}")
    made = record_drafts(llm)
    assert answers(llm, together=True) == plain
    assert 20 < llm.stats().num_accepted_tokens < 400 and max(made) < 150
    with pytest.raises(OptionError, match=r"is a draft model, which says the first 150 tokens alone.*--speculative draft:FOLDER"):
        cupola.LLM(artifact.path)


def record_drafts(llm: cupola.LLM) -> list[int]:
    """A list to which all drafted tokens are added."""
    assert llm.engine.speculation is not None
    proposer, made = llm.engine.speculation.proposer, list[int]()

    def propose(contexts: Any) -> Any:
        drafts = given(contexts)
        made.extend(token_id for draft in drafts for token_id in draft.token_ids)
        return drafts

    given, proposer.propose = proposer.propose, propose  # type: ignore[method-assign]
    return made


def test_a_model_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make_artifact(tmp_path / "other")
    assert other.manifest.model.vocab_size != cupola.Artifact.open(folder).manifest.model.vocab_size
    with pytest.raises(OptionError, match="another vocabulary"):
        cupola.LLM(folder, speculative=f"draft:{other.path}")


@pytest.mark.parametrize("bad", ["", "ngrams", "draft:", "early-exit", 3, ["ngram"]])
def test_what_is_no_proposer_is_refused(folder: Path, bad: Any) -> None:
    with pytest.raises(OptionError, match="speculative") as caught:
        cupola.LLM(folder, speculative=bad)
    assert "ngram, suffix, lookahead, auto, draft: and" in str(caught.value)
