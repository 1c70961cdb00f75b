"""Recurrences token by token, in the order of their definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, local, name, prim_func
from cupola.targets.generic.loops import each, load, total
from cupola.targets.ops import CausalConv, LinearAttention, Recurrence, SelectiveScan, match_recurrence


@dataclass(frozen=True)
class Tensor:
    """A tensor that a recurrence takes besides its state: its field, the sizes behind its rows or all of them, and its type."""

    name: str
    sizes: tuple[int, ...]
    dtype: str
    has_rows: bool  # one a token


@dataclass(frozen=True)
class RecurrentShape:
    """A recurrence but for its tensors: what a kernel is made for."""

    tensors: tuple[Tensor, ...]
    state: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def label(self) -> str:
        """The end of the kernel's name."""
        return "x".join(map(str, self.state))


@dataclass(frozen=True)
class RecurrentTensors:
    """The arguments of a kernel: by field, those that there are."""

    given: dict[str, Buffer]
    pool: Buffer
    slots: Buffer
    query_starts: Buffer
    context_lens: Buffer
    layer: Value
    out: Buffer
    batch: Value


@dataclass(frozen=True)
class Span:
    """A sequence in a call: its first token's row, how many tokens it brings, the slots that its state is read from and written to, and
    whether it does not begin from zeros."""

    first: Value
    count: Value
    source: Value
    slot: Value
    goes_on: Value


Kernel = Callable[[RecurrentShape], tvm.tirx.PrimFunc]


def lower_recurrence(
    op: Recurrence | None, kernel: Kernel, out: relax.TensorType, builder: relax.BlockBuilder, state: tuple[int, ...] | None = None
) -> relax.Expr | None:
    """A recurrence with a pool, by a kernel of the arguments that `recurrent_tensors` emits.

    `state` is the shape of its state where tensors were laid out anew.
    """
    if op is None or op.pool is None:
        return None
    own = [field.name for field in fields(op) if field.name not in _COMMON]
    given = {label: tensor for label in own if (tensor := getattr(op, label)) is not None}
    tensors = tuple(Tensor(label, _sizes(x.ty, label in op.batched), str(x.ty.dtype), label in op.batched) for label, x in given.items())
    shape = RecurrentShape(tensors, state or op.state_shape, _sizes(out, True))
    where = [op.pool, op.slots, op.query_starts, op.context_lens]
    layer = relax.prim_value(tvm.tirx.IntImm("int64", op.layer))  # an argument, so that all layers share one kernel
    function = builder.add_func(kernel(shape), f"{op.name}_{shape.label}")
    return relax.op.call_tir(function, relax.Tuple([*given.values(), *where, layer]), out_ty=out)


_COMMON = {field.name for field in fields(Recurrence)}


def _sizes(tensor: relax.TensorType, has_rows: bool) -> tuple[int, ...]:
    return tuple(int(size) for size in list(tensor.shape)[has_rows:])


def recurrent_tensors(shape: RecurrentShape) -> RecurrentTensors:
    """Emits the arguments of a kernel."""
    n, batch, layers, slots = (T.int64() for _ in range(4))
    given = {t.name: argument(t.name, ((n,) if t.has_rows else ()) + t.sizes, t.dtype) for t in shape.tensors}
    return RecurrentTensors(
        given=given,
        pool=argument("pool", (layers, slots, *shape.state), "float32"),
        slots=argument("slots", (batch, 2), "int32"),
        query_starts=argument("query_starts", (T.int64(),), "int32"),
        context_lens=argument("context_lens", (batch,), "int32"),
        layer=T.arg("layer", T.int64()),
        out=argument("out", (n, *shape.out), "float32"),
        batch=batch,
    )


def span_of(t: RecurrentTensors, sequence: Value, hold: Callable[[Value], Value] = name) -> Span:
    """Where a sequence's tokens and state are; `hold` computes a value once."""
    first, end = (hold(T.cast(t.query_starts[sequence + i], "int64")) for i in (0, 1))
    count = hold(end - first)
    goes_on = hold(T.cast(T.cast(t.context_lens[sequence], "int64") > count, "int32"))
    source, slot = (hold(T.cast(t.slots[sequence, i], "int64")) for i in (0, 1))
    return Span(first, count, source, slot, goes_on)


@contextmanager
def spans(t: RecurrentTensors) -> Iterator[Span]:
    """A loop over sequences."""
    with each(t.batch) as (sequence,):
        yield span_of(t, sequence)


def _begin(t: RecurrentTensors, span: Span, sizes: Sequence[int]) -> None:
    """Writes to a sequence's slot what its tokens begin from."""
    with each(*sizes) as index:
        state = T.if_then_else(span.goes_on != T.int32(0), t.pool[(t.layer, span.source, *index)], T.float32(0))
        T.buffer_store(t.pool, state, [t.layer, span.slot, *index])


@cache
def causal_conv(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    """`CausalConv`."""
    before, channels = shape.state

    def body() -> None:
        t = recurrent_tensors(shape)
        x, weight, bias = t.given["x"], t.given["weight"], t.given.get("bias")
        with spans(t) as span:

            def row(i: Value, c: Value) -> Value:
                """The input at a token, which may be one before the first."""
                kept = T.if_then_else(
                    span.goes_on != T.int32(0), t.pool[t.layer, span.source, T.max(before + i, T.int64(0)), c], T.float32(0)
                )
                return T.if_then_else(i >= T.int64(0), load(x, T.max(span.first + i, T.int64(0)), c), kept)

            with each(span.count, channels) as (i, c):
                value = total(before + 1, lambda j: load(weight, c, j) * row(i - before + j, c))
                T.buffer_store(t.out, value if bias is None else value + load(bias, c), [span.first + i, c])
            with each(before, channels) as (j, c):  # from the oldest on: what is read was not yet written over
                T.buffer_store(t.pool, name(row(span.count - before + j, c)), [t.layer, span.slot, j, c])

    return prim_func(body)


@cache
def linear_attention(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    """`LinearAttention`."""
    heads, key_dim, value_dim = shape.state
    shared = heads // next(t.sizes[0] for t in shape.tensors if t.name == "k")
    decays_each = next(len(t.sizes) for t in shape.tensors if t.name == "decay") == 2

    def body() -> None:
        t = recurrent_tensors(shape)
        q, k, v, decay, beta = (*(t.given[label] for label in ("q", "k", "v", "decay")), t.given.get("beta"))
        with spans(t) as span:
            _begin(t, span, shape.state)
            update = local(value_dim)
            with each(span.count, heads) as (i, head):
                token, group, state = name(span.first + i), name(head // shared), (t.layer, span.slot, head)
                with each(key_dim) as (a,):
                    kept = name(T.exp(load(decay, token, head, a) if decays_each else load(decay, token, head)))
                    with each(value_dim) as (e,):
                        T.buffer_store(t.pool, t.pool[(*state, a, e)] * kept, [*state, a, e])
                with each(value_dim) as (e,):
                    value = load(v, token, head, e)
                    if beta is not None:
                        known = total(key_dim, lambda a: load(k, token, group, a) * t.pool[(*state, a, e)])
                        value = (value - known) * load(beta, token, head)
                    T.buffer_store(update, value, [e])
                with each(key_dim, value_dim) as (a, e):
                    T.buffer_store(t.pool, t.pool[(*state, a, e)] + load(k, token, group, a) * update[e], [*state, a, e])
                with each(value_dim) as (e,):
                    value = total(key_dim, lambda a: load(q, token, group, a) * t.pool[(*state, a, e)])
                    T.buffer_store(t.out, value, [token, head, e])

    return prim_func(body)


@cache
def selective_scan(shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    """`SelectiveScan`."""
    num_states, channels = shape.state

    def body() -> None:
        t = recurrent_tensors(shape)
        x, delta, a, b, c = (t.given[label] for label in ("x", "delta", "a", "b", "c"))
        with spans(t) as span:
            _begin(t, span, shape.state)
            with each(span.count, channels) as (i, channel):
                token = name(span.first + i)
                step = name(load(delta, token, channel))
                held = local(1)
                T.buffer_store(held, T.float32(0), [0])
                with each(num_states) as (s,):
                    place = (t.layer, span.slot, s, channel)
                    kept = t.pool[place] * T.exp(step * load(a, channel, s))
                    value = name(kept + step * load(b, token, s) * load(x, token, channel))
                    T.buffer_store(t.pool, value, list(place))
                    T.buffer_store(held, held[0] + value * load(c, token, s), [0])
                T.buffer_store(t.out, held[0], [token, channel])

    return prim_func(body)


KERNELS: dict[type[Recurrence], Kernel] = {CausalConv: causal_conv, LinearAttention: linear_attention, SelectiveScan: selective_scan}


def lower_recurrences(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """Every kind."""
    op = match_recurrence(call)
    return None if op is None else lower_recurrence(op, KERNELS[type(op)], call.ty, builder)
