"""Share of requests that a cascade hands on, and its share of right answers, by its threshold: `python benchmarks/cascade SMALL LARGE`.

Both models answer all questions, greedily. What a cascade of them would say follows from how sure the small one is of each.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from questions import questions

import cupola
from cupola.runtime.server.cascade import NUM_TOKENS, confidence

MAX_TOKENS, INSTRUCTION = 48, "Answer in one short sentence."


@dataclass(frozen=True)
class Said:
    """An answer: whether it is right, and how sure its model was of its first tokens."""

    is_right: bool
    confidence: float


def answer_all(artifact: str, num_tokens: int) -> list[Said]:
    """A model's answers to all questions, one after the other."""
    llm, asked = cupola.LLM(artifact, max_num_seqs=1), questions()
    params = cupola.SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=0)
    outputs = llm.chat([[{"role": "user", "content": f"{question} {INSTRUCTION}"}] for question in asked], params)
    said = []
    for output, right in zip(outputs, asked.values(), strict=True):
        completion = output.outputs[0]
        logprobs = [next(iter(entry.values())).logprob for entry in completion.logprobs or ()]
        said.append(Said(is_right(completion.text, right), confidence(logprobs, num_tokens)))
    return said


def is_right(text: str, right: Sequence[str]) -> bool:
    """True if the text has one of these as a word, or as words."""
    return any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text, re.IGNORECASE) for one in right)


def rows(small: Sequence[Said], large: Sequence[Said]) -> Iterator[tuple[float, float, float]]:
    """Threshold, share handed on and share of right answers, where a tenth more each time is handed on."""
    ordered = sorted(said.confidence for said in small)
    for count in sorted({round(len(ordered) * tenth / 10) for tenth in range(11)}):
        threshold = ordered[count] if count < len(ordered) else 0.0
        handed_on = [said.confidence < threshold or count == len(ordered) for said in small]
        right = [(b if on else a).is_right for a, b, on in zip(small, large, handed_on, strict=True)]
        yield threshold, sum(handed_on) / len(small), sum(right) / len(small)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python benchmarks/cascade", description=__doc__)
    parser.add_argument("small", help="the small model's artifact")
    parser.add_argument("large", help="the large model's artifact")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="tokens whose mean log-probability decides (default: %(default)s)")
    given = parser.parse_args()
    small, large = answer_all(given.small, given.tokens), answer_all(given.large, given.tokens)
    print(f"{len(small)} questions; right: small {_share(small):.0%}, large {_share(large):.0%}\n")
    print("| threshold | handed on | right |\n| ---: | ---: | ---: |")
    for threshold, handed_on, right in rows(small, large):
        print(f"| {threshold:.3f} | {handed_on:.0%} | {right:.0%} |")


def _share(said: Sequence[Said]) -> float:
    return sum(one.is_right for one in said) / len(said)


if __name__ == "__main__":
    main()
