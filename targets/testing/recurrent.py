"""Recurrences in the catalogue: their references in float64, and calls of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import relax

from cupola.targets.base import Target
from cupola.targets.ops import CausalConv, LinearAttention, SelectiveScan
from cupola.targets.testing.case import Arrays, Input, KernelCase, Sizes, Tensors, case_name
from cupola.targets.testing.references import ROUNDING, Expected

Array: TypeAlias = npt.NDArray[Any]
LAYER = 1  # of two in a pool
Step: TypeAlias = Callable[[Mapping[str, Array], Array], tuple[Array, Array, Array]]


def run(arrays: Arrays, step: Step) -> tuple[Expected, Array]:
    """The result over all sequences, token by token, and the pool afterwards; `step` makes of a token's rows and a state y, what its
    magnitudes add up to, and the next state."""
    pool = arrays["pool"].astype("float64")
    starts, fields = arrays["query_starts"], {name: array.astype("float64") for name, array in arrays.items()}
    rows: list[tuple[Array, Array]] = []
    for (source, slot), first, end, length in zip(arrays["slots"], starts[:-1], starts[1:], arrays["context_lens"], strict=True):
        state = np.zeros_like(pool[LAYER, slot]) if length == end - first else pool[LAYER, source]
        for token in range(first, end):
            given = {name: array[token] if name in _BY_TOKEN else array for name, array in fields.items()}
            y, magnitude, state = step(given, state)
            rows.append((y, magnitude))
        pool[LAYER, slot] = state
    value, magnitudes = (np.stack(part) for part in zip(*rows, strict=True))
    return Expected(value, 20 * ROUNDING * magnitudes + ROUNDING), pool


_BY_TOKEN = ("x", "q", "k", "v", "decay", "beta", "delta", "b", "c")


def causal_conv(given: Mapping[str, Array], state: Array) -> tuple[Array, Array, Array]:
    """A token of `ops.CausalConv`."""
    rows, bias = np.concatenate([state, given["x"][None]]), given.get("bias", np.zeros(1))
    products = rows * given["weight"].T
    return products.sum(0) + bias, np.abs(products).sum(0) + np.abs(bias), rows[1:]


def linear_attention(given: Mapping[str, Array], state: Array) -> tuple[Array, Array, Array]:
    """A token of `ops.LinearAttention`."""
    shared = len(state) // len(given["k"])
    q, k = (given[name].repeat(shared, axis=0) for name in ("q", "k"))
    decay = given["decay"]
    state = state * np.exp(decay if decay.ndim == 2 else decay[:, None])[..., None]
    update = given["v"]
    if "beta" in given:
        update = given["beta"][:, None] * (update - np.einsum("hk,hkv->hv", k, state))
    state = state + k[..., None] * update[:, None]
    return np.einsum("hk,hkv->hv", q, state), np.einsum("hk,hkv->hv", np.abs(q), np.abs(state)), state


def selective_scan(given: Mapping[str, Array], state: Array) -> tuple[Array, Array, Array]:
    """A token of `ops.SelectiveScan`."""
    state = np.exp(given["delta"] * given["a"].T) * state + given["delta"] * given["b"][:, None] * given["x"]
    products = given["c"][:, None] * state
    return products.sum(0), np.abs(products).sum(0), state


@dataclass(frozen=True)
class RecurrentKernel:
    """A call of a recurrence, and in `extras` what it need not have: bias, beta, and a decay for each of keys' dimensions."""

    kind: str
    extras: tuple[str, ...] = ()

    def __call__(self, sizes: Sizes, target: Target) -> KernelCase:
        """The case at these sizes."""
        inputs, state, emit = _KINDS[self.kind](sizes, self.extras)
        step: dict[str, tuple[int | str, ...]] = {"query_starts": ("b1",), "context_lens": ("b",), "slots": ("b", 2)}
        rows = [i for i in inputs if not i.is_weight]
        given = [*rows, Input("pool", (2, "slots", *state)), *(Input(name, shape, "int32") for name, shape in step.items())]
        weights = [i for i in inputs if i.is_weight]
        name = case_name(self.kind, "x".join(map(str, state)), *self.extras)
        draw = partial(_draw, [*given, *weights])
        reference = STEPS[self.kind]
        return KernelCase(name, (*given, *weights), emit, lambda arrays: run(arrays, reference)[0], draw)


STEPS: dict[str, Step] = {"causal_conv": causal_conv, "linear_attention": linear_attention, "selective_scan": selective_scan}
_Kind: TypeAlias = tuple[list[Input], tuple[int, ...], Callable[[Tensors], relax.Call]]


def _state(t: Tensors) -> tuple[int, relax.Expr, relax.Expr, relax.Expr, relax.Expr]:
    return LAYER, t["pool"], t["slots"], t["query_starts"], t["context_lens"]


def _causal_conv(sizes: Sizes, extras: tuple[str, ...]) -> _Kind:
    channels, width = sizes.ffn, 4 if sizes.hidden % 3 else 3
    inputs = [Input("x", ("n", channels)), Input("weight", (channels, width))] + [Input("bias", (channels,))] * ("bias" in extras)
    return inputs, (width - 1, channels), lambda t: CausalConv(*_state(t), t["x"], t["weight"], t.get("bias")).emit(t["x"].ty)


def _linear_attention(sizes: Sizes, extras: tuple[str, ...]) -> _Kind:
    heads, groups, key_dim, value_dim = sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.head_dim + sizes.head_dim // 2
    decay: tuple[int | str, ...] = ("n", heads, key_dim) if "decays_each" in extras else ("n", heads)
    inputs = [Input(name, ("n", groups, key_dim)) for name in "qk"] + [Input("v", ("n", heads, value_dim)), Input("decay", decay)]
    inputs += [Input("beta", ("n", heads))] * ("beta" in extras)

    def emit(t: Tensors) -> relax.Call:
        return LinearAttention(*_state(t), t["q"], t["k"], t["v"], t["decay"], t.get("beta")).emit(t["v"].ty)

    return inputs, (heads, key_dim, value_dim), emit


def _selective_scan(sizes: Sizes, extras: tuple[str, ...]) -> _Kind:
    channels, num_states = sizes.ffn, 16
    inputs = [Input(name, ("n", channels)) for name in ("x", "delta")] + [Input(name, ("n", num_states)) for name in "bc"]
    inputs.append(Input("a", (channels, num_states)))

    def emit(t: Tensors) -> relax.Call:
        return SelectiveScan(*_state(t), t["x"], t["delta"], t["a"], t["b"], t["c"]).emit(t["x"].ty)

    return inputs, (num_states, channels), emit


_KINDS: dict[str, Callable[[Sizes, tuple[str, ...]], _Kind]] = {
    "causal_conv": _causal_conv,
    "linear_attention": _linear_attention,
    "selective_scan": _selective_scan,
}


def _draw(inputs: list[Input], random: np.random.Generator, num_tokens: int) -> Arrays:
    """Up to four sequences of `num_tokens` tokens in all, some of which are new: their slots hold NaN, as all do that nobody has."""
    starts = np.unique([0, num_tokens, *random.integers(0, num_tokens + 1, 3)])
    counts = np.diff(starts)
    before = random.integers(0, 2, len(counts)) * random.integers(1, 9, len(counts))
    num_slots = 2 * len(counts) + 2
    slots = random.permutation(num_slots)[: 2 * len(counts)].reshape(-1, 2)
    slots[:, 0] = np.where(random.integers(0, 2, len(counts)) == 0, slots[:, 0], slots[:, 1])  # some are changed in place
    integers = {"query_starts": starts, "context_lens": counts + before, "slots": slots}
    arrays = {i.name: i.draw(random, {"n": num_tokens, "slots": num_slots}) for i in inputs if i.name not in integers}
    for name, change in _RANGES.items():
        if name in arrays:
            arrays[name] = change(arrays[name])
    arrays["pool"][:, np.setdiff1d(np.arange(num_slots), slots[before > 0, 0])] = np.nan
    return arrays | {name: array.astype("int32") for name, array in integers.items()}


_RANGES: dict[str, Callable[[Array], Array]] = {  # as models have them
    "k": lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)),
    "decay": lambda x: -np.abs(x),
    "beta": lambda x: 1 / (1 + np.exp(-x)),
    "delta": lambda x: np.log1p(np.exp(x)),
    "a": lambda x: -np.exp(x),
}


KERNELS = (
    RecurrentKernel("causal_conv"),
    RecurrentKernel("linear_attention"),
    RecurrentKernel("linear_attention", ("beta",)),
    RecurrentKernel("selective_scan"),
)
VARIANTS = (
    RecurrentKernel("causal_conv", ("bias",)),
    RecurrentKernel("linear_attention", ("beta", "decays_each")),
)
