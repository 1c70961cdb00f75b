"""Medians, the table in Markdown, and what goes into the JSON file. Pure functions of what was recorded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from contest import ENTRANTS, WORKLOADS
from turns import Record

Json = dict[str, object]


def median(values: Sequence[float]) -> float | None:
    """The middle one, or None of none."""
    return statistics.median(values) if values else None


def fastest_peers(records: Mapping[str, Record]) -> dict[str, tuple[str, float]]:
    """Of each workload that a peer did, the peer with the highest median, and that median."""
    best: dict[str, tuple[str, float]] = {}
    for name, record in records.items():
        if record.error or not ENTRANTS[name].is_peer:
            continue
        for work, rates in record.rates.items():
            if rates and (work not in best or statistics.median(rates) > best[work][1]):
                best[work] = name, statistics.median(rates)
    return best


def ratios(records: Mapping[str, Record]) -> dict[str, dict[str, float]]:
    """Of each of cupola's entrants and each workload, its median over the fastest peer's."""
    best = fastest_peers(records)
    own = {name: record for name, record in records.items() if not record.error and not ENTRANTS[name].is_peer}
    return {
        name: {work: statistics.median(rates) / best[work][1] for work, rates in record.rates.items() if rates and work in best}
        for name, record in own.items()
    }


def as_json(records: Mapping[str, Record], about: Json) -> Json:
    """All that is known: `about` the run, every record with its samples and medians, and the ratios."""
    engines = {}
    for name, record in records.items():
        medians = {work: median(rates) for work, rates in record.rates.items()}
        loading = {"load_seconds": median(record.load_seconds), "resident_bytes": median(record.resident_bytes)}
        engines[name] = {"about": ENTRANTS[name].about, "is_peer": ENTRANTS[name].is_peer, "median": medians | loading, **asdict(record)}
    titles = {name: WORKLOADS[name].title for record in records.values() for name in record.rates}
    return about | {"workloads": titles, "engines": engines, "times_the_fastest_peer": ratios(records)}


def as_markdown(records: Mapping[str, Record], workloads: Sequence[str], about: Sequence[str]) -> str:
    """The table, the ratios under it, and the lines of `about` the run. The fastest of a column is in bold."""
    head = ["engine", "version", *(WORKLOADS[work].title for work in workloads), "first token, s", "resident, MB"]
    bests = [max((m for r in records.values() if (m := median(r.rates.get(work, []))) is not None), default=None) for work in workloads]
    lines = ["Tokens a second, medians; loading a model up to its first token; memory resident then.", "", *_header(head, 2)]
    lines += [_row(name, record, workloads, bests) for name, record in records.items()]
    for name, record in records.items():
        lines += [f"\n{name}, {WORKLOADS[work].title}: {error}" for work, error in record.errors.items()]
    lines += _ratio_lines(records, workloads)
    return "\n".join([*lines, "", *(f"- {line}" for line in about), ""])


def _header(head: Sequence[str], num_texts: int) -> list[str]:
    return [_cells(head), _cells(["---"] * num_texts + ["---:"] * (len(head) - num_texts))]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(name: str, record: Record, workloads: Sequence[str], bests: Sequence[float | None]) -> str:
    who = [f"{name} ({ENTRANTS[name].about})", record.version]
    if record.error:
        return _cells([*who, f"not measured: {record.error}", *[""] * (len(workloads) + 1)])
    medians = [median(record.rates.get(work, [])) for work in workloads]
    rates = [_bold(_number(m), m is not None and m == best) for m, best in zip(medians, bests, strict=True)]
    seconds, memory = median(record.load_seconds), median(record.resident_bytes)
    return _cells([*who, *rates, "–" if seconds is None else f"{seconds:.2f}", "–" if memory is None else f"{memory / 1e6:.0f}"])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def _ratio_lines(records: Mapping[str, Record], workloads: Sequence[str]) -> list[str]:
    best, own = fastest_peers(records), ratios(records)
    if not best or not any(own.values()):
        return []
    lines = ["", "Times the fastest peer of each column:", "", *_header(["engine", *(WORKLOADS[work].title for work in workloads)], 1)]
    for name, of in own.items():
        lines.append(_cells([name, *(f"{of[work]:.2f}" if work in of else "–" for work in workloads)]))
    return [*lines, _cells(["fastest peer", *(best[work][0] if work in best else "–" for work in workloads)])]
