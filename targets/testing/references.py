"""Reference results of the operations, in numpy and float64, and how far off a right kernel may be.

Arrays come by the names of the operation's fields. A kernel computes in float32 and in an order of its own, so each result
comes with a slack, element by element: rounding in proportion to what was summed, and a whole step for an activation so near
to the middle between two integers that float32 may round it to either.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.inputs import LIMIT, MAX_STEPS, MAXIMA_BLOCK, ONE, TEMPERATURE, TOP_K, TOP_P, UNIFORMS
from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import E4M3_MAX, TABLES
from cupola.targets.state import StateContents

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
ROUNDING = 1e-6  # of sums in float32, relative to the sum of magnitudes
BF16_ROUNDING = 2.0**-8  # to the nearest bfloat16, relative, at most
BF16_EXP2 = 1 / 12  # what powers of two may be off that are rounded to bfloat16 next, relative to that rounding
HALVES = {"": (0.0, 0.0), "bfloat16": (BF16_ROUNDING, 0.0), "float16": (2.0**-11, 2.0**-25)}  # rounding to these: relative, at least
INT16_ROUNDING = 0.5 / (2**15 - 1)  # to int16, relative to the largest number that is rounded alike, at most
STEEPEST = 1.2  # slope of any activation


@dataclass(frozen=True)
class Expected:
    """A result in float64, and how far a right one may be from it; both of the result's shape."""

    value: Array
    slack: Array

    def error(self, actual: Array) -> float:
        """The worst element's distance, in slacks: up to 1 is right. Infinite if shapes differ or something is no number."""
        if actual.shape != self.value.shape:
            return math.inf
        distance = np.abs(actual.astype("float64") - self.value)
        return math.inf if np.isnan(distance).any() else float(np.max(distance / self.slack, initial=0.0))


def _expected(value: Array, slack: Array | float) -> Expected:
    return Expected(value, slack + ROUNDING * np.abs(value) + 1e-12)


def activation(name: str, x: Array) -> Array:
    """One of `ops.ACTIVATIONS`."""
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf, otypes=["float64"])(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"": x, "silu": x * np.exp(-np.logaddexp(0, -x)), "relu": np.maximum(x, 0)}[name]


def dequantized(arrays: Arrays, format: WeightFormat | None, table_dtype: str = "float64") -> tuple[Array, Array]:
    """The weight as real numbers, entries of a table rounded to `table_dtype`, and the magnitudes that add up to them."""
    weight = arrays["weight"].astype("float64")
    if format is not None and format.table:
        weight = np.array(TABLES[format.table]).astype(table_dtype).astype("float64")[arrays["weight"]]
    if format is None:
        return weight, np.abs(weight)
    spread = {name: np.repeat(arrays[name].astype("float64"), size, axis=1) for name, size, _ in format.factors}
    if format.has_zeros:
        spread["mins"] = -spread["scales"] * spread["mins"]
    product, mins = (spread.get(name, 0.0) * spread.get(f"super_{name}", 1.0) for name in ("scales", "mins"))
    product = product * (weight - format.zero)
    return product + mins, np.abs(product) + np.abs(mins)


def quantized_activations(x: Array, group_size: int) -> tuple[Array, Array]:
    """x in steps of amax / 127 of its group, and what each value may be off: a step where it is near to the middle of two."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % group_size))).reshape(len(x), -1, group_size)
    step = np.abs(groups).max(-1, keepdims=True) / 127
    codes = groups / np.where(step == 0, 1, step)
    doubtful = np.abs(np.abs(codes - np.floor(codes)) - 0.5) < 5e-4
    quantized, doubt = ((step * each).reshape(len(x), -1)[:, : x.shape[1]] for each in (np.rint(codes), doubtful))
    return quantized, doubt


def rounded(x: Array, dtype: str) -> tuple[Array, Array]:
    """x rounded to such floats, and what each value may be off where it is nearly halfway between two."""
    to = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    below, value, above = ((x * (1 + sign * ROUNDING)).astype("float32").astype(to).astype("float64") for sign in (-1, 0, 1))
    return value, np.abs(above - below)


def linear(
    arrays: Arrays, activation: str, epsilon: float, quantize_x: int, gated: bool, format: WeightFormat | None = None,
    bf16_result: bool = False, bf16_from: int | None = None, multiplies: str = "",
) -> Expected:  # fmt: skip
    """`ops.Linear` and `ops.GatedLinear`. From `bf16_from` rows on, bfloat16 takes the place of quantized activations, for weights too;
    `multiplies` is such a type for activations that are not quantized, and for weights, whose table's entries are rounded to it as well."""
    x, (weight, magnitude) = arrays["x"].astype("float64"), dequantized(arrays, format, multiplies or "float64")
    if "norm" in arrays:
        x = _rms_normalized(x, epsilon) * arrays["norm"]
    x = np.pad(x, ((0, 0), (0, weight.shape[1] - x.shape[1])))  # quantized weights have whole groups
    doubt, weight_doubt = np.zeros_like(x), np.zeros_like(weight)
    if quantize_x and bf16_from is not None and len(x) >= bf16_from:
        (x, doubt), (weight, weight_doubt) = rounded(x, "bfloat16"), rounded(weight, "bfloat16")
    elif quantize_x:
        x, doubt = quantized_activations(x, quantize_x)
    elif multiplies:
        (x, doubt), (weight, weight_doubt) = rounded(x, multiplies), rounded(weight, multiplies)
    product = x @ weight.T + arrays.get("bias", np.zeros(1)).astype("float64")
    slack = (ROUNDING * np.abs(x) + doubt) @ magnitude.T + np.abs(x) @ weight_doubt.T + ROUNDING * np.abs(product)
    n = len(weight) // 2 if gated else len(weight)
    value, slack_value = _activated(activation, product[:, :n]), STEEPEST * slack[:, :n]
    if gated:
        slack_value = slack_value * (np.abs(product[:, n:]) + slack[:, n:]) + np.abs(value) * slack[:, n:]
        value = value * product[:, n:]
    residual = arrays.get("residual", np.zeros(1)).astype("float64")
    value = value + residual
    slack_value = slack_value + ROUNDING * np.abs(residual)
    return _expected(value, slack_value + bf16_result * BF16_ROUNDING * (1 + BF16_EXP2) * (np.abs(value) + slack_value))


def expert_linear(
    arrays: Arrays, num_experts: int, activation: str, quantize_x: int, gated: bool, format: WeightFormat | None = None,
    bf16_from: int | None = None,
) -> Expected:  # fmt: skip
    """`ops.ExpertLinear` and `ops.GatedExpertLinear`: `linear` of each expert and the rows that go there."""
    index, x = arrays["index"], arrays["x"]
    pairs = x if x.ndim == 3 else np.repeat(x[:, None], index.shape[1], axis=1)
    parts = {name: np.split(arrays[name], num_experts) for name in ("weight", "scales", "mins", "bias") if name in arrays}
    outputs = len(parts["weight"][0]) // (2 if gated else 1)
    value, slack = np.zeros((*index.shape, outputs)), np.zeros((*index.shape, outputs))
    for expert in np.unique(index):
        given = {name: part[expert] for name, part in parts.items()} | {"x": pairs[index == expert]}
        found = linear(given, activation, 0.0, quantize_x, gated, format, bf16_from=bf16_from)
        value[index == expert], slack[index == expert] = found.value, found.slack
    return Expected(value, slack)


def top_k(arrays: Arrays, k: int) -> Expected:
    """`ops.TopK`, which rounds nothing."""
    x = np.nan_to_num(arrays["x"].astype("float64"), nan=-np.inf, neginf=-np.inf, posinf=np.inf)
    value = np.argsort(-x, axis=-1, kind="stable")[..., :k].astype("float64")
    return Expected(value, np.full_like(value, np.finfo("float64").tiny))


_activated = activation  # under a name that no parameter hides


def embedding(arrays: Arrays, width: int, format: WeightFormat | None = None) -> Expected:
    """Rows of a table, quantized or not."""
    rows, magnitudes = (table[arrays["tokens"], :width] for table in dequantized(arrays, format))
    return Expected(rows, ROUNDING * magnitudes + 1e-12)


def _rms_normalized(x: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def rms_norm(arrays: Arrays, epsilon: float) -> Expected:
    """`R.nn.rms_norm` over the last axis."""
    return _expected(_rms_normalized(arrays["x"].astype("float64"), epsilon) * arrays["scale"], ROUNDING)


def layer_norm(arrays: Arrays, epsilon: float) -> Expected:
    """`R.nn.layer_norm` over the last axis."""
    x = arrays["x"].astype("float64")
    value = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return _expected(value * arrays["scale"] + arrays["shift"], ROUNDING * (2 + np.abs(arrays["shift"])))


def block_maxima(arrays: Arrays) -> Expected:
    """`ops.BlockMaxima`, which rounds nothing."""
    x = arrays["x"].astype("float64")
    value = np.maximum.reduceat(x, np.arange(0, x.shape[1], MAXIMA_BLOCK), axis=1)
    return Expected(value, np.full_like(value, np.finfo("float64").tiny))


def argmax(arrays: Arrays) -> Expected:
    """`ops.Argmax`; what steps before chose may be anything."""
    logits = arrays["logits"]
    value = np.zeros((MAX_STEPS, len(logits)))
    value[-1] = np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))
    slack = np.full_like(value, np.inf)
    slack[-1] = np.finfo("float64").tiny
    return Expected(value, slack)


def sample(arrays: Arrays) -> Expected:
    """`ops.Sample`. A token may be any where a share that is off by `ROUNDING` would draw another one."""
    value, slack = np.zeros(len(arrays["logits"])), np.full(len(arrays["logits"]), np.finfo("float64").tiny)
    for i, (logits, draws) in enumerate(zip(arrays["logits"], arrays["draws"], strict=True)):
        value[i] = drawn(logits, draws)
        nearby = itertools.product((-ROUNDING, 0, ROUNDING), repeat=2)
        if any(drawn(logits, draws, *off) != value[i] for off in nearby):
            slack[i] = np.inf
    return Expected(value, slack)


def drawn(logits: Array, draws: Array, top_p_off: float = 0.0, uniform_off: float = 0.0) -> int:
    """The token that a row's `draws` mean, shares being so far off; -1 if a logit is NaN."""
    highest = logits.max()
    if not np.isfinite(highest):
        return -1 if np.isnan(highest) else int(logits.argmax())
    x = (logits - highest) / draws[TEMPERATURE : TEMPERATURE + 1].view("float32")  # in float32, where equal numbers stay equal
    keys = np.abs(x).view("int32")
    left = keys <= draws[LIMIT]
    if draws[TOP_K]:
        left &= keys <= np.sort(keys)[min(draws[TOP_K], len(keys)) - 1]
    weights = np.where(left, np.exp(x.astype("float64")), 0)
    top_p, uniform = (draws[column] / ONE + draws[column + 1] / ONE**2 for column in (TOP_P, UNIFORMS))
    if draws[TOP_P] < ONE:
        order = np.argsort(keys, kind="stable")
        size = np.searchsorted(np.cumsum(weights[order]), (top_p + top_p_off) * weights.sum())
        weights[keys > keys[order[min(size, len(order) - 1)]]] = 0
    cumulative = np.cumsum(weights)
    share = min(max((uniform + uniform_off) * cumulative[-1], 0), np.nextafter(cumulative[-1], 0))
    return int(np.searchsorted(cumulative, share, side="right"))


def rotary(arrays: Arrays, interleaved: bool) -> Expected:
    """`ops.Rotary`."""
    x, cos, sin = (arrays[name].astype("float64") for name in ("x", "cos", "sin"))
    value, magnitude = _rotated(x, cos, sin, interleaved)
    return _expected(value, ROUNDING * magnitude)


def _rotated(x: Array, cos: Array, sin: Array, interleaved: bool) -> tuple[Array, Array]:
    """x [n, heads, dim], halves or pairs rotated, and the sums of the magnitudes."""
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    if interleaved:
        turned = np.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    parts = x * cos[:, None], turned * sin[:, None]
    return parts[0] + parts[1], np.abs(parts[0]) + np.abs(parts[1])


@dataclass(frozen=True)
class Attention:
    """The numbers of an `ops.PagedAttention`. Queries and weights of a sequence of several tokens may be rounded to `multiplies`, a key of
    HALVES; of a single one too if it `rounds_one`."""

    kv_dtype: str
    scale: float
    window: int
    softcap: float
    interleaved: bool
    bf16_result: bool
    multiplies: str
    rounds_one: bool = False


def paged_attention(arrays: Arrays, state: StateContents, op: Attention) -> Expected:
    """`ops.PagedAttention`: its result. `state` is what the layer's blocks hold before the call."""
    arrays = dict(arrays) | dict(zip("qkv", _heads(arrays, state, op.interleaved), strict=False))
    rows = [_sequence(arrays, i, state, op) for i in range(len(arrays["context_lens"]))]
    value, slack = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    assert len(value) == arrays["query_starts"][-1]
    return _expected(value, slack + op.bf16_result * BF16_ROUNDING * np.abs(value))


def _heads(arrays: Arrays, state: StateContents, interleaved: bool) -> list[Array]:
    """q, k and v, if there is one, [n, heads, dim] each in float64, out of one matrix and rotated where that is asked for."""
    groups, dim = state.keys.shape[2:]
    if "qkv" not in arrays:
        found = [arrays[name].astype("float64") for name in "qkv" if name in arrays]
    else:
        joined = arrays["qkv"].astype("float64")
        found = np.split(joined, [joined.shape[1] - 2 * groups * dim, joined.shape[1] - groups * dim], axis=1)
    q, k, *v = (x.reshape(len(x), -1, dim) for x in found)
    if "cos" in arrays:
        q, k = (_rotated(x, arrays["cos"].astype("float64"), arrays["sin"].astype("float64"), interleaved)[0] for x in (q, k))
    return [q, k, *v]


def _sequence(arrays: Arrays, i: int, state: StateContents, op: Attention) -> tuple[Array, Array]:
    """The results of one sequence's tokens, [n, H·E], and their slack."""
    scale, window, softcap = op.scale, op.window, op.softcap
    first, end = arrays["query_starts"][i : i + 2]
    q, (heads, length) = arrays["q"][first:end], (arrays["q"].shape[1], int(arrays["context_lens"][i]))
    distance = np.arange(length)[None] - np.arange(length - len(q), length)[:, None]
    seen = (distance <= 0) & ((distance > -window) if window else True)
    found = (np.where(np.any(seen, axis=0)[:, None, None], x, 0) for x in _keys_and_values(arrays, i, state, op.kv_dtype))
    k, v, k_doubt, v_doubt, v_step = (np.repeat(x, heads // x.shape[1], 1) for x in found)  # blocks that nobody sees may be gone
    scores = scale * np.einsum("qhd,khd->hqk", q, k)
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    slopes = arrays.get("slopes", np.zeros(heads)).astype("float64")[:, None, None]
    scores = np.where(seen, scores + slopes * distance, -np.inf)
    sinks = arrays["sinks"].astype("float64")[:, None, None] if "sinks" in arrays else np.full((heads, 1, 1), -np.inf)
    highest = np.maximum(scores.max(-1, keepdims=True), sinks)
    weights = np.exp(scores - highest)
    weights /= weights.sum(-1, keepdims=True) + np.exp(sinks - highest)
    magnitude = np.einsum("hqk,khd->qhd", weights, np.abs(v))
    rounded, least = HALVES[op.multiplies if len(q) > 1 or op.rounds_one else ""]
    # What each weight may be off: scores are sums of rounded products, of keys that are perhaps stored a step away.
    errors = k_doubt + (ROUNDING + rounded) * np.abs(k)
    in_steps = INT16_ROUNDING if op.kv_dtype == "int8" else 0.0  # queries, then weights times steps, which multiply codes
    off = np.einsum("qhd,khd->hqk", np.abs(q), errors) + in_steps * np.einsum("qh,kh->hqk", np.abs(q).max(-1), np.abs(k).sum(-1))
    off = weights * scale * (off + least * np.einsum("khd->hk", np.abs(k))[:, None])
    largest, codes = (weights * v_step[..., 0].T[:, None]).max(-1), np.abs(v) / np.where(v_step > 0, v_step, np.inf)
    slack = (
        in_steps * np.einsum("hq,qk,khd->qhd", largest, seen, codes)
        + (6 * ROUNDING + rounded * (1 + 2 * BF16_EXP2)) * magnitude
        + least * np.einsum("qk,khd->qhd", seen, np.abs(v))
        + np.einsum("hqk,khd->qhd", weights, v_doubt)
        + np.einsum("hqk,khd->qhd", off, np.abs(v))
        + off.sum(-1).T[:, :, None] * magnitude
    )
    return np.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1), slack.reshape(len(q), -1)


def _keys_and_values(arrays: Arrays, i: int, state: StateContents, kv_dtype: str) -> tuple[Array, Array, Array, Array, Array]:
    """Keys and values of sequence i, [length, G, D]: new ones as they are stored, and older ones from the blocks. Then how far either
    may be off where float32 rounds to one stored value or the next, and what values are multiples of, [length, G, 1], 0 if of nothing."""
    first, end = arrays["query_starts"][i : i + 2]
    length, block = int(arrays["context_lens"][i]), state.keys.shape[1]
    positions = np.arange(length - (end - first))
    places = arrays["block_tables"][i][positions // block], positions % block
    stored = [_stored(arrays[name][first:end], kv_dtype) for name in "kv" if name in arrays]
    (k, k_doubt, _), (v, v_doubt, step) = stored[0], stored[-1]
    old_k, old_v = (numbers[places] for numbers in state.numbers())
    v, v_doubt = (x[..., : old_v.shape[-1]] for x in (v, v_doubt))  # the first numbers of keys, where there is no v
    old_step = np.zeros_like(old_v[..., :1]) if state.value_steps is None else state.value_steps[places][..., None].astype("float64")
    pairs = (old_k, k), (old_v, v), (np.zeros_like(old_k), k_doubt), (np.zeros_like(old_v), v_doubt), (old_step, step)
    keys, values, key_doubt, value_doubt, value_step = map(np.concatenate, pairs)
    return keys, values, key_doubt, value_doubt, value_step


def _stored(x: Array, dtype: str) -> tuple[Array, Array, Array]:
    """x [n, G, D] as pages of `dtype` hold it, how far each may be off where it is nearly halfway between two, and the steps, [n, G, 1]."""
    if dtype == E4M3:
        x = np.clip(x, -E4M3_MAX, E4M3_MAX)
    if dtype != "int8":
        below, value, above = (
            (x + sign * ROUNDING * (1 + np.abs(x))).astype("float32").astype(dtype).astype("float64") for sign in (-1, 0, 1)
        )
        return value, above - below, np.zeros_like(x[..., :1])
    step = np.abs(x).max(-1, keepdims=True) / 127
    codes = x / np.where(step == 0, 1, step)
    return step * np.rint(codes), step * (np.abs(np.abs(codes - np.floor(codes)) - 0.5) < 5e-4), step
