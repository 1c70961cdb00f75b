"""The catalogue of the calls that kernels are held to (`case.py`).

A new kernel, or a new kind of weight, is a line in `KERNELS`. Each is made at several sizes: those of a real model, which the
ledger takes, and odd ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, LIKELIEST, LIMIT, MAXIMA_BLOCK, ONE, TEMPERATURE, TOP_K, TOP_P
from cupola.targets.base import Target
from cupola.targets.ops import Argmax, BlockMaxima, Embedding, GatedLinear, Linear, Op, Rotary, Sample
from cupola.targets.testing import recurrent, references
from cupola.targets.testing.attention import KV_DTYPES, AttentionKernel
from cupola.targets.testing.case import DTYPES, Arrays, Input, KernelCase, KernelFactory, Sizes, Tensors, at_random, case_name
from cupola.targets.testing.experts import ExpertKernel, top_k
from cupola.targets.testing.weights import GROUP, Weight

EPSILON = 1e-5  # of norms


WEIGHTS = (*DTYPES, "w4", "w4m", "w8")
TABLE_WEIGHTS = ("w8g128-e4m3", "w4-e2m1", "w4g64-nf4", "w4-iq4nl")


@dataclass(frozen=True)
class LinearKernel:
    """`Linear` or `GatedLinear`, with what it does besides.

    Attributes:
        in_place: the result takes the residual's place.
        dtype: of x and of the result.
    """

    weight: str  # as `Weight.of` takes it
    gated: bool = False
    bias: bool = False
    residual: bool = False
    in_place: bool = False
    norm: bool = False
    quantize_x: int = 0
    activation: str = ""
    dtype: str = "f32"  # a key of DTYPES

    def __call__(self, sizes: Sizes, target: Target) -> KernelCase:
        """The case at these sizes."""
        n, k, weight = sizes.ffn, sizes.hidden, Weight.of(self.weight)
        rows = 2 * n if self.gated else n
        inputs = [Input("x", ("n", k), DTYPES[self.dtype]), *([Input("residual", ("n", n))] * self.residual), *weight.inputs(rows, k)]
        inputs += [Input("bias", (rows,), "float32" if weight.format else weight.dtype)] * self.bias + [Input("norm", (k,))] * self.norm
        reference = partial(references.linear, activation=self.activation, epsilon=EPSILON, quantize_x=self.quantize_x, gated=self.gated)
        scheme = self.weight if weight.format is None else self.weight + ("a8" if self.quantize_x else "a16")
        in_bf16 = self.quantize_x and target.abilities.bf16_rows
        in_one_order = not target.abilities.few_rows or bool(self.quantize_x)
        in_16_bits = target.abilities.rounds_products and not self.quantize_x and weight.has_halves
        multiplies = ("bfloat16" if weight.dtype == "bfloat16" else "float16") if in_16_bits else ""
        reference = partial(reference, format=weight.format, bf16_result=self.dtype == "bf16", bf16_from=in_bf16 or None)
        reference = partial(reference, multiplies=multiplies)
        flags = [flag for flag in ("norm", "bias", "residual", "in_place") if getattr(self, flag)] + [self.dtype] * (self.dtype != "f32")
        name = case_name("gated_linear" if self.gated else "linear", f"{n}x{k}", scheme, *flags, self.activation)
        return KernelCase(
            name, tuple(inputs), partial(self.emit, n), reference, partial(_draw_rows, inputs), bool(self.quantize_x),
            may_use_bf16=bool(self.quantize_x),
            batch_invariant=in_one_order and (target.abilities.batch_invariant or not in_bf16),
        )  # fmt: skip

    def emit(self, num_outputs: int, t: Tensors) -> relax.Call:
        """The call."""
        out = relax.TensorType((t["x"].ty.shape[0], num_outputs), DTYPES[self.dtype])
        form = Weight.of(self.weight).format
        stored = (t.get("scales"), t.get("mins"), form.name if form else "")
        quantized = (*stored, t.get("norm"), EPSILON if self.norm else 0.0, self.quantize_x)
        supers = (t.get("super_scales"), t.get("super_mins"))
        if self.gated:
            return GatedLinear(t["x"], t["weight"], t.get("bias"), self.activation, *quantized, *supers).emit(out)
        last = (int(self.in_place), *supers)
        return Linear(t["x"], t["weight"], t.get("bias"), t.get("residual"), self.activation, *quantized, *last).emit(out)


@dataclass(frozen=True)
class EmbeddingKernel:
    """Rows of an embedding: `R.take`, or `Embedding` where it is quantized."""

    weight: str  # as `Weight.of` takes it

    def __call__(self, sizes: Sizes, target: Target) -> KernelCase:
        """The case at these sizes."""
        v, k, weight = sizes.vocabulary, sizes.hidden, Weight.of(self.weight)
        inputs = (Input("tokens", ("n",), "int32", (0, v)), *weight.inputs(v, k))

        def emit(t: Tensors) -> relax.Call:
            if weight.format is None:
                return relax.op.take(t["weight"], t["tokens"], axis=0)
            out = relax.TensorType((t["tokens"].ty.shape[0], k), "float32")
            supers = (t.get("super_scales"), t.get("super_mins"))
            return Embedding(t["weight"], t["scales"], t.get("mins"), weight.format.name, t["tokens"], *supers).emit(out)

        reference = partial(references.embedding, width=k, format=weight.format)
        return KernelCase(case_name("embedding", f"{v}x{k}", self.weight), inputs, emit, reference, at_random(inputs))


def rms_norm(sizes: Sizes, target: Target) -> KernelCase:
    """`R.nn.rms_norm` of rows."""
    return _norm("rms_norm", (sizes.hidden,), ("scale",))


def head_norm(sizes: Sizes, target: Target) -> KernelCase:
    """`R.nn.rms_norm` of each head."""
    return _norm("rms_norm", (sizes.heads, sizes.head_dim), ("scale",))


def layer_norm(sizes: Sizes, target: Target) -> KernelCase:
    """`R.nn.layer_norm` of rows."""
    return _norm("layer_norm", (sizes.hidden,), ("scale", "shift"))


def _norm(kind: str, shape: tuple[int, ...], weights: tuple[str, ...]) -> KernelCase:
    inputs = [Input("x", ("n", *shape)), *(Input(weight, shape[-1:]) for weight in weights)]

    def emit(t: Tensors) -> relax.Call:
        return getattr(relax.op.nn, kind)(t["x"], *(t[weight] for weight in weights), [-1], EPSILON)

    name = case_name(kind, "x".join(str(size) for size in shape))
    return KernelCase(name, tuple(inputs), emit, partial(getattr(references, kind), epsilon=EPSILON), at_random(inputs))


def rotary(sizes: Sizes, target: Target, interleaved: int = 0) -> KernelCase:
    """`Rotary`, of halves or interleaved."""
    inputs = [Input("x", ("n", sizes.heads, sizes.head_dim)), *(Input(name, ("n", sizes.head_dim)) for name in ("cos", "sin"))]

    def emit(t: Tensors) -> relax.Call:
        return Rotary(t["x"], t["cos"], t["sin"], interleaved).emit(t["x"].ty)

    name = case_name("rotary", f"{sizes.heads}x{sizes.head_dim}", "interleaved" * interleaved)
    return KernelCase(name, tuple(inputs), emit, partial(references.rotary, interleaved=bool(interleaved)), at_random(inputs))


def block_maxima(sizes: Sizes, target: Target) -> KernelCase:
    """`BlockMaxima` of logits."""
    inputs = (Input("x", ("n", sizes.vocabulary)),)
    name = case_name("block_maxima", sizes.vocabulary)
    return KernelCase(name, inputs, lambda t: BlockMaxima(t["x"]).call(), references.block_maxima, at_random(inputs))


def argmax(sizes: Sizes, target: Target) -> KernelCase:
    """`Argmax`, where every sequence brings one token."""
    logits, num_blocks = Input("logits", ("n", sizes.vocabulary)), -(-sizes.vocabulary // MAXIMA_BLOCK)
    tokens = [Input(name, ("t",), "int32", (0, 100)) for name in ("tokens", "positions", "slots")]
    tables = [Input("context_lens", ("b",), "int32", (1, 100)), Input("block_tables", ("b", "w"), "int32", (0, 9))]
    inputs = (logits, Input("maxima", ("n", num_blocks)), *tokens, *tables)

    def emit(t: Tensors) -> relax.Call:
        given: dict[str, Any] = {i.name: t[i.name] for i in inputs}
        return Argmax(**given, block_size=sizes.block).call()

    def draw(random: np.random.Generator, num_tokens: int) -> Arrays:
        arrays = {i.name: i.draw(random, {"n": num_tokens, "t": num_tokens, "b": num_tokens, "w": 5}) for i in inputs}
        logits = arrays["logits"] = np.rint(arrays["logits"])  # so that some are equal
        logits[3::7, -1] = np.nan
        logits[4::7] = -np.inf
        return arrays | {"maxima": references.block_maxima({"x": logits}).value.astype("float32")}

    return KernelCase(case_name("argmax", sizes.vocabulary), inputs, emit, references.argmax, draw)


def sample(sizes: Sizes, target: Target) -> KernelCase:
    """`Sample`: of each row by other parameters."""
    num_blocks = -(-sizes.vocabulary // MAXIMA_BLOCK)
    inputs = (
        Input("logits", ("n", sizes.vocabulary)), Input("maxima", ("n", num_blocks)),
        Input("draws", ("n", DRAW_COLUMNS), "int32", (0, ONE)),
    )  # fmt: skip

    def emit(t: Tensors) -> relax.Call:
        return Sample(t["logits"], t["maxima"], t["draws"]).call()

    def draw(random: np.random.Generator, num_tokens: int) -> Arrays:
        arrays = {i.name: i.draw(random, {"n": num_tokens}) for i in inputs}
        logits, draws = 3 * arrays["logits"], arrays["draws"]
        logits[::2] = np.rint(logits[::2])  # so that some are equal
        logits[6::7, -1] = np.nan
        logits[7::9], logits[8::9, 1:3] = -np.inf, np.inf
        arrays["logits"] = logits
        temperatures, limits = random.choice([0.3, 1, 2], num_tokens), random.choice([1, 5, np.inf], num_tokens)
        draws[:, TEMPERATURE], draws[:, LIMIT] = (x.astype("float32").view("int32") for x in (temperatures, limits))
        draws[:, TOP_K] = random.choice([0, 1, 20, 10**6], num_tokens)
        draws[random.random(num_tokens) < 0.3, TOP_P] = ONE
        draws[4::5] = LIKELIEST
        return arrays | {"maxima": references.block_maxima({"x": logits}).value.astype("float32")}

    return KernelCase(case_name("sample", sizes.vocabulary), inputs, emit, references.sample, draw)


K_QUANTS = ("w4g32m-s6x256", "w6g16-s8x256")  # ggml's Q4_K and Q6_K, which stand for all that have super-blocks

# Each kernel for each kind of weight or page; these are in the ledger too. Groups of 64 stand for all that are more than a slice.
KERNELS: tuple[KernelFactory, ...] = (
    *(LinearKernel(weight) for weight in DTYPES),
    *(LinearKernel(weight, gated=True, activation="silu") for weight in DTYPES),
    *(LinearKernel(weight, quantize_x=GROUP) for weight in ("w4", "w4m", "w8")),
    LinearKernel("w4", gated=True, norm=True, activation="silu", quantize_x=GROUP),
    LinearKernel("w4", residual=True, quantize_x=GROUP, dtype="bf16"),
    *(LinearKernel(weight) for weight in ("w4", "w8")),
    *(EmbeddingKernel(weight) for weight in WEIGHTS),
    LinearKernel("w4g64", quantize_x=GROUP),
    LinearKernel("w4g64"),
    EmbeddingKernel("w4g64"),
    *(LinearKernel(weight) for weight in TABLE_WEIGHTS),
    *(EmbeddingKernel(weight) for weight in TABLE_WEIGHTS[:2]),
    *(LinearKernel(weight, quantize_x=GROUP) for weight in K_QUANTS),
    LinearKernel("w6g16-s8x256"),
    EmbeddingKernel("w6g16-s8x256"),
    *(ExpertKernel(weight, gated=True, activation="silu") for weight in DTYPES),
    *(ExpertKernel(weight, is_shared=False, quantize_x=GROUP) for weight in ("w4", "w8")),
    ExpertKernel("w4", gated=True, activation="silu", quantize_x=GROUP),
    ExpertKernel("w4"),
    top_k,
    rms_norm,
    head_norm,
    layer_norm,
    rotary,
    *(AttentionKernel(kv, joined=True) for kv in KV_DTYPES),
    *recurrent.KERNELS,
    block_maxima,
    argmax,
    sample,
    *(AttentionKernel(kv, latent=True) for kv in (*DTYPES, "int8")),
)
# What they do besides, in combinations.
VARIANTS: tuple[KernelFactory, ...] = (
    LinearKernel("f32", bias=True, residual=True, activation="gelu"),
    LinearKernel("f16", bias=True, activation="gelu_tanh"),
    LinearKernel("bf16", residual=True, in_place=True, activation="relu"),
    LinearKernel("f32", gated=True, bias=True, activation="gelu_tanh"),
    partial(rotary, interleaved=1),
    LinearKernel("f16", norm=True),
    LinearKernel("w4", norm=True, bias=True, residual=True, quantize_x=GROUP),
    LinearKernel("w4m", residual=True, in_place=True, activation="gelu", quantize_x=GROUP),
    LinearKernel("w4m", gated=True, norm=True, activation="silu", quantize_x=GROUP),
    LinearKernel("w8", gated=True, bias=True, activation="silu", quantize_x=GROUP),
    LinearKernel("w4", bias=True, quantize_x=GROUP, dtype="bf16"),
    LinearKernel("w8", gated=True, activation="silu", quantize_x=GROUP, dtype="bf16"),
    LinearKernel("w4m", gated=True, norm=True, activation="silu"),
    LinearKernel("w8", bias=True, residual=True, in_place=True, activation="gelu"),
    LinearKernel("w8g64", gated=True, norm=True, activation="silu", quantize_x=GROUP),
    LinearKernel("w4g96m", bias=True, residual=True, quantize_x=GROUP, dtype="bf16"),
    LinearKernel("w8g96", gated=True, norm=True, activation="silu"),
    LinearKernel("w4g64m", residual=True, in_place=True),
    LinearKernel("w4g64z", bias=True),
    LinearKernel("w4g64z", gated=True, norm=True, activation="silu", quantize_x=GROUP),
    LinearKernel("w8g32z-f32", residual=True, quantize_x=GROUP),
    LinearKernel("w8g64z-bf16", gated=True, activation="silu"),
    LinearKernel("w8g64-e4m3-f32"),
    LinearKernel("w4g96m-f32", bias=True, quantize_x=GROUP),
    EmbeddingKernel("w8g64z-f32"),
    EmbeddingKernel("w4g64m-bf16"),
    LinearKernel("w8g64-e4m3", gated=True, norm=True, activation="silu"),
    LinearKernel("w4-nf4", bias=True, residual=True, activation="gelu"),
    LinearKernel("w5g32m-s6x256", gated=True, norm=True, activation="silu", quantize_x=GROUP),  # Q5_K
    LinearKernel("w3g16-s6x256", bias=True, residual=True, quantize_x=GROUP),  # Q3_K
    LinearKernel("w2g16m-s4x256", quantize_x=GROUP, dtype="bf16"),  # Q2_K
    LinearKernel("w5g32", quantize_x=GROUP),  # Q5_0
    LinearKernel("w4g32-iq4nl-s6x256", gated=True, activation="silu", quantize_x=GROUP),  # IQ4_XS
    LinearKernel("w3g16-iq2-s6x256", quantize_x=GROUP),  # IQ2_XS
    LinearKernel("w4g32-e2m1-bf16", bias=True, quantize_x=GROUP),  # MXFP4
    LinearKernel("w4g32m-s6x256", residual=True, in_place=True),
    LinearKernel("w4g32-iq4nl-s6x256", gated=True, norm=True, activation="silu"),
    EmbeddingKernel("w3g16-s6x256"),
    EmbeddingKernel("w2g16m-s4x256"),
    ExpertKernel("f32", bias=True, is_shared=False),
    ExpertKernel("bf16", gated=True, bias=True, activation="gelu_tanh"),
    ExpertKernel("w4m", bias=True, is_shared=False, quantize_x=GROUP),
    ExpertKernel("w8", gated=True, bias=True, activation="silu", quantize_x=GROUP),
    ExpertKernel("w8g64", gated=True, activation="gelu", is_shared=False),
    EmbeddingKernel("w8g96"),
    EmbeddingKernel("w4g64m"),
    AttentionKernel("f16"),
    AttentionKernel("bf16", joined=True, dtype="bf16"),
    AttentionKernel("f32", joined=True, interleaved=True),
    AttentionKernel("int8", window=30, softcap=4.0),
    AttentionKernel("f32", window=20, softcap=5.0, slopes=True, sinks=True),
    AttentionKernel("bf16", joined=True, window=20, slopes=True, sinks=True),
    AttentionKernel("fp8", window=20, softcap=4.0, sinks=True),
    *recurrent.VARIANTS,
    AttentionKernel("f32", latent=True, window=20, softcap=5.0, slopes=True, sinks=True),
    AttentionKernel("bf16", latent=True, window=50, softcap=5.0, one_each=True),
    AttentionKernel("int8", latent=True, window=30, sinks=True, one_each=True),
    AttentionKernel("fp8", latent=True),
)


_OPTIONAL: Mapping[KernelFactory, type[Op]] = {block_maxima: BlockMaxima, argmax: Argmax, sample: Sample}


def is_implemented(kernel: KernelFactory, target: Target) -> bool:
    """True if the target has a kernel for the factory's cases."""
    if getattr(kernel, "quantize_x", 0) and 8 not in target.abilities.activation_bits:
        return False
    weight = getattr(kernel, "weight", "f32")
    form = Weight.of(weight).format
    if form is not None and (form.super_size or form.has_zeros) and not target.abilities.keeps_blocks:
        return False
    floats = {DTYPES[name] for name in (weight, getattr(kernel, "dtype", "")) if name in DTYPES}
    kept = KV_DTYPES[getattr(kernel, "kv", "f32")]
    if not floats <= set(target.abilities.float_dtypes) or kept not in target.abilities.kv_dtypes:
        return False
    if getattr(kernel, "latent", False) and not target.abilities.latent_attention:
        return False
    op = _OPTIONAL.get(kernel)
    return op is None or target.implements(op)


def _draw_rows(inputs: Sequence[Input], random: np.random.Generator, num_tokens: int) -> Arrays:
    """Every fifth row begins with a group of zeros, which has no scale."""
    arrays = at_random(inputs)(random, num_tokens)
    arrays["x"][::5, :GROUP] = 0
    return arrays
