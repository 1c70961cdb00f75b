"""One step's plan: which tokens of which sequences run, and which rows of the logits are whose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cupola.runtime.artifact.inputs import LIKELIEST
from cupola.runtime.device.interface import Batch, Int32, SamplingPlan
from cupola.runtime.engine.block_pool import BlockTable
from cupola.runtime.engine.draws import uniform_columns
from cupola.runtime.engine.request import Sequence
from cupola.runtime.engine.state_manager import State


class Chunk(NamedTuple):
    """Tokens `start` to `end` of a sequence, and drafted ones after them.

    Those from `logits_start` on have logits, from row `first_row` of the step's; so has each drafted one.

    What may come instead of the draft is branches: chunks of the sequence that begin with the same token and write to blocks of their own.
    """

    sequence: Sequence
    start: int
    end: int
    logits_start: int
    first_row: int
    samples: bool  # whether a token comes out of the last row: no known token is left after `end`
    first_index: int  # of the first token among those that the sequence's tables show
    first_position: int
    draft: tuple[int, ...] = ()  # what may come next, for the model to look at in the same step; only where `samples`
    branches: tuple[Chunk, ...] = ()
    own_state: State | None = None  # of a branch

    @property
    def state(self) -> State:
        """Where K and V of its tokens stand."""
        return self.sequence.state if self.own_state is None else self.own_state

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes."""
        return self.end - self.start + len(self.draft)

    @property
    def num_rows(self) -> int:
        """Rows of logits."""
        return self.end - self.logits_start + len(self.draft)

    @property
    def num_right(self) -> int:
        """Drafted tokens that came, once what the step computed was taken in: all its tokens but the one that no draft foresaw."""
        return max(0, len(self.sequence.token_ids) - self.end - 1)

    @property
    def next_row(self) -> int:
        """The row that the sequence's next token comes out of, and behind it those of drafted tokens; only where `samples`."""
        return self.first_row + self.end - self.logits_start - 1


class Step(NamedTuple):
    """The executor's batch, and the meaning of its logits."""

    batch: Batch
    chunks: tuple[Chunk, ...]
    sampling: SamplingPlan

    @property
    def num_steps(self) -> int:
        """Of the model; after the first, it goes on with the tokens that it found."""
        return self.sampling.num_steps


def build_step(
    plan: Mapping[Sequence, int],
    copies: Iterable[tuple[int, int, int]],
    block_size: int,
    num_sinks: int = 0,
    num_steps: int = 1,
    draws_tokens: bool = False,
    drafts: Mapping[Sequence, tuple[int, ...]] = MappingProxyType({}),
    branches: Mapping[Sequence, SequenceOf[tuple[tuple[int, ...], State]]] = MappingProxyType({}),
) -> Step:
    """The step that computes the next `plan[sequence]` tokens of each sequence, and then perhaps more; their blocks must be reserved.

    `drafts` are tokens that may come next in sequences of which all known tokens are planned, `branches` such as may come in their place,
    with a state for each. A model that `draws_tokens` finds those too that are not the likeliest.

    Where a sequence's window moved on, its first `num_sinks` tokens run besides, at the positions before the window.
    """
    chunks, num_rows = [], 0
    for sequence, num_tokens in plan.items():
        chunk = _chunk(sequence, num_tokens, num_rows, drafts.get(sequence, ()))
        chunks.append(chunk)
        num_rows += chunk.num_rows
    for i, chunk in enumerate(chunks if branches else ()):
        for draft, state in branches.get(chunk.sequence, ()):
            branch = chunk._replace(first_row=num_rows, draft=draft, branches=(), own_state=state)
            chunks[i] = chunks[i]._replace(branches=(*chunks[i].branches, branch))
            num_rows += branch.num_rows
    every = [*chunks, *(branch for chunk in chunks for branch in chunk.branches)]
    sinks = _sinks(plan, num_sinks, num_rows) if num_sinks else []
    sampling = SamplingPlan(num_steps, tuple(_read_rows(every, draws_tokens)))
    batch = _batch(every + sinks, tuple(copies), block_size)
    return Step(batch._replace(draws=_draws(every, sampling, num_rows)) if draws_tokens else batch, tuple(chunks), sampling)


def _sinks(sequences: Iterable[Sequence], num_sinks: int, num_rows: int) -> list[Chunk]:
    again = [sequence for sequence in sequences if sequence.state.runs_sinks]
    return [Chunk(sequence, 0, num_sinks, num_sinks, num_rows, False, 0, sequence.state.num_dropped) for sequence in again]


def _chunk(sequence: Sequence, num_tokens: int, first_row: int, draft: tuple[int, ...]) -> Chunk:
    start = sequence.num_computed_tokens
    end = start + num_tokens
    samples = end == len(sequence.token_ids)
    request = sequence.request
    logits_start = min(max(start, request.num_scored_tokens), end) if request.wants_scores else end - samples
    return Chunk(sequence, start, end, logits_start, first_row, samples, start - sequence.state.num_dropped, start, draft)


def _read_rows(chunks: list[Chunk], draws_tokens: bool) -> Iterator[int]:
    """The rows of logits that sampling and scoring look at."""
    for chunk in chunks:
        end = chunk.first_row + chunk.num_rows
        if chunk.sequence.request.wants_scores:
            yield from range(chunk.first_row, end)
        elif chunk.samples and not all(sequence.needs_token_alone(draws_tokens) for sequence in chunk.sequence.samplers):
            yield from range(chunk.next_row, end)


def _draws(chunks: list[Chunk], sampling: SamplingPlan, num_rows: int) -> Int32 | None:
    """How the model draws the tokens of rows that the host does not read; None if all of them are the likeliest."""
    read, rows = set(sampling.rows), [LIKELIEST] * num_rows
    for chunk in chunks:
        row, sequence = chunk.next_row, chunk.sequence
        if chunk.samples and row not in read and not sequence.takes_likeliest:
            ahead = sequence.uniforms_ahead(sampling.num_steps + len(chunk.draft))
            for i in range(len(chunk.draft) + 1):
                rows[row + i] = (*sequence.request.spec.draw, *uniform_columns(ahead[i : i + sampling.num_steps]))
    return np.array(rows, np.int32) if any(row is not LIKELIEST for row in rows) else None


def _batch(chunks: list[Chunk], copies: tuple[tuple[int, int, int], ...], block_size: int) -> Batch:
    """Lists, which become arrays at the end: most steps bring a token or a few, and a call of numpy takes as long as twenty of them."""
    tokens: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    query_starts = [0]
    for chunk in chunks:
        logit_rows += range(len(tokens) + chunk.logits_start - chunk.start, len(tokens) + chunk.num_tokens)
        tokens += chunk.sequence.token_ids[chunk.start : chunk.end]
        tokens += chunk.draft
        positions += range(chunk.first_position, chunk.first_position + chunk.num_tokens)
        query_starts.append(len(tokens))
    tables_of_groups = list(zip(*[chunk.state.tables for chunk in chunks], strict=True))
    slots = [(slot if state.source < 0 else state.source, slot) for state in (chunk.state for chunk in chunks) for slot in state.slot]
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        slots=tuple([_slots(chunks, tables, block_size) for tables in tables_of_groups]),
        query_starts=np.array(query_starts, np.int32),
        context_lens=np.array([chunk.first_index + chunk.num_tokens for chunk in chunks], np.int32),
        block_tables=tuple([_stacked(tables) for tables in tables_of_groups]),
        logit_rows=np.array(logit_rows, np.int32),
        copies=copies,
        state_slots={len(tables_of_groups): np.array(slots, np.int32)} if slots else {},
    )


def _slots(chunks: list[Chunk], tables: tuple[BlockTable, ...], block_size: int) -> Int32:
    """Where a group keeps each new token."""
    slots: list[int] = []
    for chunk, table in zip(chunks, tables, strict=True):
        start, end = chunk.first_index, chunk.first_index + chunk.num_tokens
        for block in range(start // block_size, -(-end // block_size)):
            first = (table[block] - block) * block_size
            slots += range(first + max(start, block * block_size), first + min(end, (block + 1) * block_size))
    return np.array(slots, np.int32)


def _stacked(tables: tuple[BlockTable, ...]) -> Int32:
    """The tables as rows, padded with 0."""
    width = max(map(len, tables))
    rows = b"".join([table.tobytes().ljust(width * table.itemsize, b"\0") for table in tables])
    return np.frombuffer(rows, np.int32).reshape(len(tables), width)
