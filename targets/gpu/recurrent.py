"""Recurrences: threads keep a sequence's state in registers while they go through its tokens, one after the other.

So a token has the same bits however a prompt was cut into calls. A channel of a convolution or of a scan has a thread; a column of a head's
state, of linear attention, has four of a warp, which share its rows and add up in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.errors import UnsupportedError
from cupola.targets.emit import Buffer, Value, prim_func
from cupola.targets.generic.recurrent import Kernel, RecurrentShape, RecurrentTensors, Span, lower_recurrence, recurrent_tensors, span_of
from cupola.targets.gpu.emit import WARP, any_lane, blocks, cached, exchange, gpu, keep, load, registers
from cupola.targets.ops import CausalConv, LinearAttention, Recurrence, SelectiveScan, match_recurrence

SHARES = 4  # of a column's rows
_COLUMNS = WARP // SHARES  # of a warp
MAX_ROWS = 256  # of a state, all of whose rows registers hold


def lower_recurrences(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """Every kind. Raises UnsupportedError where a thread would have to keep more than its registers hold."""
    op = match_recurrence(call)
    if op is None:
        return None
    if op.state_shape[-2] > MAX_ROWS:
        problem = f"keeps a state of {op.state_shape[-2]} rows, where a GPU's registers hold {MAX_ROWS}"
        raise UnsupportedError(problem, field=f"layer {op.layer}, {op.name}", fix="compile for a CPU")
    return lower_recurrence(op, _KERNELS[type(op)], call.ty, builder)


@contextmanager
def _channels(t: RecurrentTensors, channels: int) -> Iterator[tuple[Span, Value]]:
    """A thread for each sequence and channel."""
    threads = gpu().warps * WARP
    with blocks(t.batch, -(-channels // threads), threads=threads) as (sequence, block, thread):
        channel = keep(block * threads + thread)
        with T.If(channel < T.int64(channels)), T.Then():
            yield span_of(t, sequence, keep), channel


def _read_state(t: RecurrentTensors, span: Span, count: int, place: Callable[[int], tuple[Value | int, ...]]) -> Buffer:
    """Numbers of a sequence's state in registers, zeros if all of its tokens are new."""
    state = registers(count)
    for i in range(count):
        T.buffer_store(state, T.float32(0), [i])
    with T.If(span.goes_on != T.int32(0)), T.Then():
        for i in range(count):
            T.buffer_store(state, t.pool[(t.layer, span.source, *place(i))], [i])
    return state


def _write_state(t: RecurrentTensors, span: Span, state: Buffer, place: Callable[[int], tuple[Value | int, ...]]) -> None:
    for i in range(int(state.shape[0])):
        T.buffer_store(t.pool, state[i], [t.layer, span.slot, *place(i)])


@cached
def _causal_conv(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    before, channels = shape.state

    def body() -> None:
        t = recurrent_tensors(shape)
        x, weight, bias = t.given["x"], t.given["weight"], t.given.get("bias")
        with _channels(t, channels) as (span, channel):

            def place(j: int) -> tuple[Value | int, ...]:
                return j, channel

            rows = _read_state(t, span, before, place)
            weights = registers(before + 1)
            for j in range(before + 1):
                T.buffer_store(weights, load(weight, channel, j), [j])
            start = keep(load(bias, channel) if bias is not None else T.float32(0))
            total, new = registers(), registers()
            with T.serial(span.count) as i:
                token = span.first + T.cast(i, "int64")
                T.buffer_store(new, load(x, token, channel), [0])
                T.buffer_store(total, start, [0])
                for j in range(before + 1):
                    T.buffer_store(total, total[0] + weights[j] * (rows[j] if j < before else new[0]), [0])
                T.buffer_store(t.out, total[0], [token, channel])
                for j in range(before):
                    T.buffer_store(rows, rows[j + 1] if j + 1 < before else new[0], [j])
            _write_state(t, span, rows, place)

    return prim_func(body)


@cached
def _selective_scan(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    num_states, channels = shape.state

    def body() -> None:
        t = recurrent_tensors(shape)
        x, delta, a, b, c = (t.given[label] for label in ("x", "delta", "a", "b", "c"))
        with _channels(t, channels) as (span, channel):

            def place(s: int) -> tuple[Value | int, ...]:
                return s, channel

            state = _read_state(t, span, num_states, place)
            total = registers()
            with T.serial(span.count) as i:
                token = span.first + T.cast(i, "int64")
                step = keep(load(delta, token, channel))
                given = keep(step * load(x, token, channel))
                T.buffer_store(total, T.float32(0), [0])
                for s in range(num_states):
                    kept = T.exp(step * load(a, channel, s)) * state[s]
                    T.buffer_store(state, kept + given * load(b, token, s), [s])
                    T.buffer_store(total, total[0] + state[s] * load(c, token, s), [0])
                T.buffer_store(t.out, total[0], [token, channel])
            _write_state(t, span, state, place)

    return prim_func(body)


@dataclass(frozen=True)
class _Column:
    """A thread's share of a column of a head's state: every `SHARES`th row. One behind the last column works for nothing."""

    column: Value
    share: Value
    lane: Value
    num_rows: int

    @property
    def count(self) -> int:
        """Rows of a share; the last of some threads may be none."""
        return -(-self.num_rows // SHARES)

    def row(self, i: int) -> Value:
        """The number of the share's row `i`; where there is none, the last one's."""
        row = self.share + T.int64(SHARES * i)
        return row if SHARES * (i + 1) <= self.num_rows else T.min(row, T.int64(self.num_rows - 1))

    def if_any(self, i: int, value: Value) -> Value:
        """A number that belongs to row `i`, 0 where there is none."""
        if SHARES * (i + 1) <= self.num_rows:
            return value
        return T.if_then_else(self.share + T.int64(SHARES * i) < T.int64(self.num_rows), value, T.float32(0))

    def total(self, value: Value) -> Value:
        """The sum over the column's threads, for each of them."""
        first = self.lane % _COLUMNS
        held = None if gpu().has_shuffles else exchange(value)
        parts = [first + T.int64(_COLUMNS * share) for share in range(SHARES)]
        terms = [any_lane(value, part) if held is None else keep(held[part]) for part in parts]
        return keep(terms[0] + terms[1] + (terms[2] + terms[3]))


@cached
def _linear_attention(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    heads, key_dim, value_dim = shape.state
    groups = next(t.sizes[0] for t in shape.tensors if t.name == "k")
    decays_each = next(len(t.sizes) for t in shape.tensors if t.name == "decay") == 2

    def body() -> None:
        t = recurrent_tensors(shape)
        q, k, v, decay, beta = (*(t.given[label] for label in ("q", "k", "v", "decay")), t.given.get("beta"))
        threads, columns = gpu().warps * WARP, gpu().warps * _COLUMNS
        of_head = -(-value_dim // columns)
        with blocks(t.batch, heads * of_head, threads=threads) as (sequence, block, thread):
            span, lane, head = span_of(t, sequence, keep), keep(thread % WARP), keep(block // of_head)
            wanted = keep(block % of_head * columns + thread // WARP * _COLUMNS + lane % _COLUMNS)
            own = _Column(keep(T.min(wanted, T.int64(value_dim - 1))), keep(lane // _COLUMNS), lane, key_dim)
            group = head // (heads // groups)

            def place(i: int) -> tuple[Value | int, ...]:
                return head, own.row(i), own.column

            state, keys, sums = _read_state(t, span, own.count, place), registers(own.count), registers()
            with T.serial(span.count) as i:
                token = span.first + T.cast(i, "int64")
                kept = None if decays_each else keep(T.exp(load(decay, token, head)))
                T.buffer_store(sums, T.float32(0), [0])
                for j in range(own.count):
                    share = T.exp(load(decay, token, head, own.row(j))) if kept is None else kept
                    T.buffer_store(keys, own.if_any(j, load(k, token, group, own.row(j))), [j])
                    T.buffer_store(state, state[j] * share, [j])
                    if beta is not None:
                        T.buffer_store(sums, sums[0] + keys[j] * state[j], [0])
                update = keep(load(v, token, head, own.column))
                if beta is not None:
                    update = keep((update - own.total(sums[0])) * load(beta, token, head))
                T.buffer_store(sums, T.float32(0), [0])
                for j in range(own.count):
                    T.buffer_store(state, state[j] + keys[j] * update, [j])
                    T.buffer_store(sums, sums[0] + own.if_any(j, load(q, token, group, own.row(j))) * state[j], [0])
                result = own.total(sums[0])
                with T.If(T.And(own.share == T.int64(0), wanted < T.int64(value_dim))), T.Then():
                    T.buffer_store(t.out, result, [token, head, own.column])
            with T.If(wanted < T.int64(value_dim)), T.Then():
                for j in range(own.count):
                    with T.If(own.share + T.int64(SHARES * j) < T.int64(key_dim)), T.Then():
                        T.buffer_store(t.pool, state[j], [t.layer, span.slot, *place(j)])

    return prim_func(body)


_KERNELS: dict[type[Recurrence], Kernel] = {CausalConv: _causal_conv, LinearAttention: _linear_attention, SelectiveScan: _selective_scan}
