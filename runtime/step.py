"""One step's plan: which tokens of which sequences run, and which rows of the logits are whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cupola.runtime.batch import Batch, Int32
from cupola.runtime.request import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` of a sequence. Those from `logits_start` on have logits, from row `first_row` of the step's."""

    sequence: Sequence
    start: int
    end: int
    logits_start: int
    first_row: int
    samples: bool  # whether a token comes out of the last row: no known token is left after `end`


@dataclass(frozen=True)
class Step:
    """What the executor runs, and what its logits mean."""

    batch: Batch
    chunks: tuple[Chunk, ...]


def build_step(plan: Mapping[Sequence, int], copies: Iterable[tuple[int, int]], block_size: int) -> Step:
    """The step that computes the next `plan[sequence]` tokens of each sequence; their blocks must be reserved."""
    chunks, num_rows = [], 0
    for sequence, num_tokens in plan.items():
        chunk = _chunk(sequence, num_tokens, num_rows)
        chunks.append(chunk)
        num_rows += chunk.end - chunk.logits_start
    return Step(_batch(chunks, tuple(copies), block_size), tuple(chunks))


def _chunk(sequence: Sequence, num_tokens: int, first_row: int) -> Chunk:
    start = sequence.num_computed_tokens
    end = start + num_tokens
    samples = end == len(sequence.token_ids)
    request = sequence.request
    logits_start = min(max(start, request.num_scored_tokens), end) if request.wants_scores else end - samples
    return Chunk(sequence, start, end, logits_start, first_row, samples)


def _batch(chunks: list[Chunk], copies: tuple[tuple[int, int], ...], block_size: int) -> Batch:
    tables = np.zeros((len(chunks), max(len(chunk.sequence.block_table) for chunk in chunks)), np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.sequence.block_table)] = chunk.sequence.block_table
    starts = np.array([chunk.start for chunk in chunks], np.int32)
    ends = np.array([chunk.end for chunk in chunks], np.int32)
    lengths = ends - starts
    query_starts = np.concatenate([[0], lengths.cumsum()], dtype=np.int32)
    positions = _ranges(starts, lengths)
    blocks = tables[np.repeat(np.arange(len(chunks)), lengths), positions // block_size]
    num_rows = ends - np.array([chunk.logits_start for chunk in chunks], np.int32)
    return Batch(
        tokens=np.array([token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]], np.int32),
        positions=positions,
        slots=blocks * np.int32(block_size) + positions % np.int32(block_size),
        query_starts=query_starts,
        context_lens=ends,
        block_tables=tables,
        logit_rows=_ranges(query_starts[1:] - num_rows, num_rows),
        copies=copies,
    )


def _ranges(starts: Int32, lengths: Int32) -> Int32:
    """The numbers that follow each start, itself included, as many as its length says, one range after the other."""
    ends = lengths.cumsum(dtype=np.int32)
    return np.arange(ends[-1], dtype=np.int32) + np.repeat(starts - (ends - lengths), lengths)
