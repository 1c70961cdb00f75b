"""`cupola bench --speculative`: tokens a second with and without drafts, for four kinds of answers, or some of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict

import cupola
from cupola.compiler.cli.lists import table
from cupola.compiler.cli.progress import console_progress

HEAD = ["answers", "t/s", "t/s with drafts", "ratio", "drafted", "right", "tokens a step", "same answers"]


def show_speculation(
    artifact: cupola.Artifact, speculative: str, repeats: int, as_json: bool, num_tokens: int, num_streams: int, kinds: Sequence[str]
) -> str:
    """Measures kinds of answers and returns the table, of medians, or JSON of every measurement."""
    found: dict[str, list[cupola.SpeculationSpeed]] = {}
    options = {"num_tokens": num_tokens, "repeats": repeats, "num_streams": num_streams}
    with console_progress().stage("answers", (len(kinds) or 4) * repeats) as advance:
        for speed in cupola.measure_speculation(artifact, speculative, kinds=kinds, **options):
            found.setdefault(speed.kind, []).append(speed)
            advance(1)
    if as_json:
        measured = [asdict(speed) | {"plain": speed.plain, "drafting": speed.drafting} for speeds in found.values() for speed in speeds]
        return json.dumps({"speculative": speculative, "answers": measured})
    return table(HEAD, [_row(kind, speeds) for kind, speeds in found.items()])


def _row(kind: str, speeds: Sequence[cupola.SpeculationSpeed]) -> list[str]:
    plain, drafting = (statistics.median(values) for values in ([s.plain for s in speeds], [s.drafting for s in speeds]))
    ratio = statistics.median(speed.drafting / speed.plain for speed in speeds)
    num_drafted, num_right = (sum(counts) for counts in ([s.num_draft_tokens for s in speeds], [s.num_accepted_tokens for s in speeds]))
    steps = statistics.median(speed.tokens_a_step for speed in speeds)
    same = f"{sum(speed.num_same for speed in speeds)} of {sum(speed.num_answers for speed in speeds)}"
    right = f"{num_right / num_drafted:.0%}" if num_drafted else "–"
    return [kind, f"{plain:.1f}", f"{drafting:.1f}", f"{ratio:.2f}", str(num_drafted), right, f"{steps:.2f}", same]
