"""Speculation is measured over answers to prompts of four kinds, and shown as a table."""

from __future__ import annotations

import json

import pytest

import cupola
from cupola.compiler.cli.bench_speculative import show_speculation
from cupola.runtime.errors import OptionError
from cupola.runtime.measure import speculation_benchmark as module
from cupola.runtime.measure.answer_kinds import answer_kinds
from tests.runtime.tiny_artifact import make_artifact


def test_prompts_hold_what_they_ask_about():
    kinds = answer_kinds()
    assert list(kinds) == ["edits of code", "quotes", "JSON", "free writing"] and {len(prompts) for prompts in kinds.values()} == {4}
    assert all("def " in prompt and "```python" in prompt for prompt in kinds["edits of code"])
    assert "max_queue:" in kinds["quotes"][0] and "typical_p:" in kinds["quotes"][1]
    assert len({prompt for prompts in kinds.values() for prompt in prompts}) == 16
    assert all(prompt.count("ordered") == 5 for prompt in kinds["JSON"])


def test_measurements_count_what_came(tmp_path, monkeypatch):
    artifact = make_artifact(tmp_path / "artifact")
    monkeypatch.setattr(module, "answer_kinds", lambda: {"letters": ["abab", "ba"], "more": ["aaaa"]})
    speeds = list(module.measure_speculation(artifact, "ngram", num_tokens=9, repeats=2))
    assert [(speed.kind, speed.num_answers) for speed in speeds] == [("letters", 2), ("more", 1)] * 2
    for speed in speeds:
        assert speed.num_same == speed.num_answers and speed.num_tokens == speed.num_drafting_tokens <= 8 * speed.num_answers
        assert speed.num_drafting_tokens == speed.num_steps + speed.num_accepted_tokens


def test_answers_are_made_together_and_kinds_are_chosen(tmp_path, monkeypatch):
    artifact = make_artifact(tmp_path / "artifact")
    monkeypatch.setattr(module, "answer_kinds", lambda: {"letters": ["abab", "ba", "a"], "More": ["aaaa"]})
    [letters] = module.measure_speculation(artifact, "ngram", num_tokens=9, repeats=1, num_streams=2, kinds=["let"])
    assert (letters.kind, letters.num_answers, letters.num_same) == ("letters", 4, 4)  # the third beside the first
    [more] = module.measure_speculation(artifact, "ngram", num_tokens=9, repeats=1, num_streams=2, kinds=["mo"])
    assert (more.kind, more.num_answers) == ("More", 2)
    with pytest.raises(OptionError, match="poems.*letters, More"):
        list(module.measure_speculation(artifact, "ngram", kinds=["poems"]))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_table_has_medians_and_sums(monkeypatch, as_json):
    def speed(kind: str, seconds: float, num_accepted: int) -> cupola.SpeculationSpeed:
        return cupola.SpeculationSpeed(kind, 4, 3, 100, 1.0, 100, seconds, 50, 80, num_accepted)

    found = [speed("JSON", 0.5, 40), speed("stories", 1.0, 0), speed("JSON", 0.4, 60), speed("JSON", 0.8, 20)]
    monkeypatch.setitem(vars(cupola), "measure_speculation", lambda artifact, name, **options: iter(found))
    text = show_speculation(None, "ngram", 3, as_json, 128, 1, [])  # type: ignore[arg-type]
    if as_json:
        assert [answer["drafting"] for answer in json.loads(text)["answers"]] == pytest.approx([200.0, 250.0, 125.0, 100.0])
    else:
        assert [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]] == [
            "JSON", "100.0", "200.0", "2.00", "240", "50%", "2.00", "9 of 12"
        ]  # fmt: skip
