"""The prompts of a load test: random words, words behind shared prefixes, or first turns of conversations from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupola.runtime.errors import OptionError
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.words import Tokenize, Vocabulary

# vLLM's choice of conversations: not too short to say anything, not too long for small contexts. Tokens.
MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS = 4, 1024, 2048
MAX_CHARACTERS = 32_768  # of a text that may have so few tokens; longer ones are not even counted
CHARACTERS_PER_TOKEN = 4  # where the server can't count


@dataclass(frozen=True)
class Prompt:
    """One request's prompt, a text or token ids; its number of tokens; and how many to generate."""

    content: str | list[int]
    num_tokens: int
    output_len: int


def make_prompts(test: LoadTest, vocabulary: Vocabulary, as_ids: bool) -> list[Prompt]:
    """`test.num_prompts` of random words; the same for the same seed, whether sent as text or as ids."""
    rng = np.random.default_rng(test.seed)
    draw = {"random": _random, "prefix_repetition": _prefix_repetition}[test.dataset_name]
    return [Prompt(vocabulary.prompt(places, as_ids), len(places), output_len) for places, output_len in draw(test, vocabulary, rng)]


def make_warm_up(test: LoadTest, like: Prompt, number: int, vocabulary: Vocabulary, as_ids: bool) -> Prompt:
    """A prompt with the lengths of `like` that no measured one begins with, so that no prefix cache has those afterwards."""
    rng = np.random.default_rng((test.seed, 2 + number))
    return Prompt(vocabulary.prompt(vocabulary.draw(like.num_tokens, rng), as_ids), like.num_tokens, like.output_len)


async def read_sharegpt(test: LoadTest, tokenize: Tokenize) -> list[Prompt]:
    """The first turns of conversations in a ShareGPT file, and the lengths of what was answered.

    The file is a JSON list of {"conversations": [{"value": "…"}, …]}. Conversations are shuffled; if they are too few, some
    come again. Raises OptionError.
    """
    assert test.dataset_path is not None
    rng = np.random.default_rng(test.seed)
    turns = _read_turns(Path(test.dataset_path))
    prompts: list[Prompt] = []
    for place in rng.permutation(len(turns)):
        if len(prompts) == test.num_prompts:
            break
        question, answer = turns[place]
        prompt = await _measured(question, answer, test.length("output_len"), tokenize)
        if prompt is not None:
            prompts.append(prompt)
    if not prompts:
        raise OptionError("no conversation fits", file=test.dataset_path, fix=f"prompts have {MIN_TOKENS} to {MAX_PROMPT_TOKENS} tokens")
    again = rng.integers(0, len(prompts), test.num_prompts - len(prompts))
    return [*prompts, *(prompts[place] for place in again)]


def _random(test: LoadTest, vocabulary: Vocabulary, rng: np.random.Generator) -> list[tuple[list[int], int]]:
    num_prompts, ratio = test.num_prompts, test.random_range_ratio
    input_lens = _lengths(test.length("input_len"), ratio, num_prompts, rng)
    output_lens = _lengths(test.length("output_len"), ratio, num_prompts, rng)
    prefix = vocabulary.draw(test.length("prefix_len"), rng)
    return [([*prefix, *vocabulary.draw(n, rng)], output) for n, output in zip(input_lens, output_lens, strict=True)]


def _prefix_repetition(test: LoadTest, vocabulary: Vocabulary, rng: np.random.Generator) -> list[tuple[list[int], int]]:
    num_prefixes, output_len = min(test.length("num_prefixes"), test.num_prompts), test.length("output_len")
    prefixes = [vocabulary.draw(test.length("prefix_len"), rng) for _ in range(num_prefixes)]
    order = rng.permutation(np.arange(test.num_prompts) % num_prefixes)
    return [([*prefixes[place], *vocabulary.draw(test.length("suffix_len"), rng)], output_len) for place in order]


def _lengths(mean: int, ratio: float, count: int, rng: np.random.Generator) -> list[int]:
    """Evenly from ⌊mean (1 − ratio)⌋, but at least 1, to ⌈mean (1 + ratio)⌉."""
    return rng.integers(max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio)) + 1, count).tolist()


def _read_turns(file: Path) -> list[tuple[str, str]]:
    """First and second turn of each conversation that has them."""
    fix = 'it should be a JSON list of {"conversations": [{"value": "…"}, {"value": "…"}]}'
    try:
        entries = json.loads(file.read_bytes())
    except OSError as error:
        raise OptionError(f"can't be read: {error.strerror}", file=file, field="dataset-path", fix="name a ShareGPT file") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"is not JSON: {error}", file=file, field="dataset-path", fix=fix) from None
    found = [turns for entry in entries if (turns := _turns(entry)) is not None] if isinstance(entries, list) else []
    if not found:
        raise OptionError("holds no conversation of two turns", file=file, field="dataset-path", fix=fix)
    return found


def _turns(entry: object) -> tuple[str, str] | None:
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, Sequence) or len(turns) < 2:
        return None
    first, second = (turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2])
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None


async def _measured(question: str, answer: str, output_len: int, tokenize: Tokenize) -> Prompt | None:
    """The prompt with its lengths, if they suit; an `output_len` of 0 is the answer's."""
    if max(len(question), len(answer)) > MAX_CHARACTERS:
        return None
    num_tokens = await _count(question, tokenize)
    num_answered = output_len or await _count(answer, tokenize)
    fits = MIN_TOKENS <= num_tokens <= MAX_PROMPT_TOKENS and num_tokens + num_answered <= MAX_TOTAL_TOKENS
    return Prompt(question, num_tokens, num_answered) if fits and (output_len or num_answered >= MIN_TOKENS) else None


async def _count(text: str, tokenize: Tokenize) -> int:
    ids = await tokenize(text)
    return -(-len(text) // CHARACTERS_PER_TOKEN) if ids is None else len(ids)
