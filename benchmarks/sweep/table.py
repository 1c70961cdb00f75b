"""The recorded results: a JSON file, the Markdown made of it, and what is worse than it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from case import Result
from sweeps import Sweep

OUTCOMES = {
    "match": "logits of two prompts and greedily decoded tokens are transformers'",
    "wrong": "it compiles and answers otherwise than transformers",
    "failed": "it raised what is not an error of cupola's, died or took too long",
    "refused": "it is refused by name",
    "no reference": "transformers itself does not run the tiny model, or it is not causal",
}
REFUSAL_SECONDS = 10.0  # of processor time, until a refusal must have come

_HEAD = """# {title}

{about}: compiled in f32, the logits of two prompts and {tokens} greedily decoded tokens compared with transformers {version}.
Made by `make sweep`; `make sweep ARGS="--only llama,qwen3"` runs some anew.
*Error* is the largest difference of a logit, *seconds* is the processor time of compiling, or until the refusal came.{verified}

{counts}

| {case} | outcome | error | seconds | reason |
| --- | --- | --- | --- | --- |
"""
_VERIFIED = """
A family that is **verified** is compared by the tests too, in a ragged batch and with logprobs, the less used ones by turns."""


def read_results(path: Path) -> dict[str, Result]:
    """The recorded results by name; none if there is no file."""
    if not path.exists():
        return {}
    return {name: Result(name=name, **fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """A line a case, so that a change of one is a change of one line."""
    lines = []
    for name in sorted(results):
        fields = {key: value for key, value in asdict(results[name]).items() if key != "name"}
        lines.append(f" {json.dumps(name)}: {json.dumps(fields, ensure_ascii=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def as_markdown(sweep: Sweep, results: Mapping[str, Result], version: str, num_decoded: int) -> str:
    """The table for people: matches first, then by name."""
    count = Counter(result.outcome for result in results.values())
    counts = "\n".join(f"- **{count[name]} {name}**: {meaning}" for name, meaning in OUTCOMES.items() if count[name])
    if untried := len(sweep.names) - len(results):
        counts += f"\n- **{untried} not tried yet**: `make sweep ARGS=--missing` does"
    order = list(OUTCOMES)
    rows = sorted(results.values(), key=lambda result: (order.index(result.outcome), result.name))
    head = _HEAD.format(
        title=sweep.title, about=sweep.about, version=version, tokens=num_decoded, counts=counts,
        verified=_VERIFIED if sweep.tested else "", case="variant" if ":" in "".join(results) else "model type",
    )  # fmt: skip
    return head + "".join(_row(result, result.name in sweep.tested) for result in rows)


def _row(result: Result, is_family: bool) -> str:
    error = "" if result.error is None else f"{result.error:.0e}"
    outcome = f"{result.outcome}, **verified**" if is_family and result.outcome == "match" else result.outcome
    reason = result.reason.replace("|", "\\|").replace("<", "\\<")
    return f"| `{result.name}` | {outcome} | {error} | {result.seconds:.1f} | {reason} |\n"


def faults(result: Result, recorded: Result | None) -> list[str]:
    """Why a result may not stand: it is wrong in itself, or worse than (or other than) the recorded one."""
    found = []
    if result.outcome in ("wrong", "failed"):
        found.append(f"is {result.outcome}: {result.reason}")
    if result.outcome == "refused" and result.seconds > REFUSAL_SECONDS:
        found.append(f"is refused after {result.seconds:.0f} seconds, which may take {REFUSAL_SECONDS:.0f}")
    if recorded is None:
        found.append("has no line in the table: run `make sweep ARGS=--only …`")
    elif (result.outcome, result.reason) != (recorded.outcome, recorded.reason) and not found:
        was, now = (f"{each.outcome} ({each.reason})" if each.reason else each.outcome for each in (recorded, result))
        found.append(f"was {was} and is {now}: if that is meant, record it by `make sweep ARGS=--only …`")
    return [f"{result.name} {fault}" for fault in found]
