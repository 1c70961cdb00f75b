"""Tokenizers of known shapes run at once; hostile ones take bounded time and memory, and never the process that asks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

import cupola.runtime.text.tokenizer as module
from cupola.runtime.errors import ArtifactError, RequestError
from cupola.runtime.text.tokenizer_safety import growth, is_harmless_decoder, is_harmless_encoder, is_simple
from tests.runtime.tokenizers_for_tests import byte_fallback, byte_level, save

PUBLISHED = [  # how published models split words
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[一-龥぀-ゟ゠-ヿ]+",
    "[0-9][0-9][0-9]",
    r" {2,}",
]
HOSTILE = [
    r"(a+)+$", r"(a|a)*b", r"(a*)*", r"a*a*a*b", r"(?:a{1,9}){1,9999}b", r"(a)\1", r"(?<x>a)\k<x>", r"((a?)*)*", r"(a+){2,}", "(", "a**",
    "(?(1)a)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_simple(pattern: str):
    assert is_simple(pattern)
    pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str("a 1\n" * 9)  # the library reads it too


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_may_take_for_ever_are_not(pattern: str):
    assert not is_simple(pattern)


def with_normalizer(*steps: Any) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer


BOMB = [normalizers.Replace("a", "aaaaaaaaaa")] * 12


def test_growth_is_at_least_what_happens():
    steps = [normalizers.NFKD(), normalizers.Lowercase(), normalizers.Replace("f", "gg"), normalizers.Prepend("x")]
    tokenizer = with_normalizer(*steps)
    estimate = growth(json.loads(tokenizer.normalizer.__getstate__()))
    for character in ("\ufdfa", "\u0130", "ﬃ", "f", "a"):
        assert len(tokenizer.normalizer.normalize_str(character)) <= estimate
    assert growth({"type": "Sequence", "normalizers": [{"type": "Whatever"}]}) == float("inf") and growth(None) == 1


def test_the_tokenizers_of_tests_are_harmless():
    for tokenizer in (byte_level(), byte_fallback(), with_normalizer(normalizers.NFC())):
        assert is_harmless_encoder(tokenizer) and is_harmless_decoder(tokenizer)
    assert not is_harmless_encoder(with_normalizer(*BOMB))


def evil() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("(a+)+$"), "isolated"), tokenizer.pre_tokenizer])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [evil(), with_normalizer(*BOMB)], ids=["pattern", "normalizers"])
def test_a_hostile_tokenizer_costs_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: tokenizers.Tokenizer):
    monkeypatch.setattr(module, "MAX_SECONDS", 3.0)
    bounded, start = module.Tokenizer(save(tokenizer, tmp_path), is_bounded=True), time.perf_counter()
    with pytest.raises(RequestError, match="prompt: can't be turned into tokens"):
        bounded.encode("a" * 60 + "b", max_tokens=1000)
    assert time.perf_counter() - start < 30
    assert bounded.encode("hi", max_tokens=1000) == tokenizer.encode("hi").ids
    bounded.close()


def test_very_long_texts_are_encoded_apart_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer, jobs, ask = byte_level(), list[object](), module.WorkerProcess.ask
    monkeypatch.setattr(module.WorkerProcess, "ask", lambda worker, job: jobs.append(job) or ask(worker, job))
    bounded = module.Tokenizer(save(tokenizer, tmp_path), is_bounded=True)
    text = "the 你好 \u2028 <end> " * 1999
    for length, is_quick, is_apart in ((100, True, False), (module.THREAD_CHARACTERS, False, False), (len(text), False, True)):
        assert bounded.is_quick(text[:length]) == is_quick
        assert bounded.encode(text[:length], max_tokens=10**6) == tokenizer.encode(text[:length]).ids
        assert bool(jobs) == is_apart
    bounded.close()


def test_a_decoder_that_multiplies_is_refused(tmp_path: Path):
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *[decoders.Replace("a", "a" * 10)] * 12])
    with pytest.raises(ArtifactError, match="decoder: may make any length of text of a token"):
        module.Tokenizer(save(tokenizer, tmp_path))
