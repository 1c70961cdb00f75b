"""Sizes of real mixtures of experts, and the names, shapes and types that llama.cpp's converter gives their tensors.

As their config.json has it: huggingface.co/{Qwen/Qwen3-30B-A3B, openai/gpt-oss-20b, ibm-granite/granite-4.0-h-tiny,
Qwen/Qwen3-Next-80B-A3B-Instruct}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Kind

VOCABULARY = 32768
Tensor = tuple[str, tuple[int, ...], Kind]


@dataclass(frozen=True)
class Model:
    """A mixture whose layers all have attention; sizes are named as in configurations."""

    architecture: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    choices: int
    width: int
    rope_theta: float
    expert_kind: Kind = Kind.Q4_0
    has_biases: bool = False
    has_head_norms: bool = True
    has_gated_attention: bool = False
    shared_width: int = 0
    second_norm: str = "ffn_norm"
    has_expert_width: bool = True  # a field of its own, beside the width of all

    def tensors(self, layers: int) -> Iterator[Tensor]:
        """All of so many layers."""
        yield "token_embd.weight", (VOCABULARY, self.hidden), Kind.Q4_0
        for layer in range(layers):
            for name, shape, kind in (*self.mixer(layer), *self.mixture()):
                yield f"blk.{layer}.{name}", shape, kind
        yield "output_norm.weight", (self.hidden,), Kind.F32
        yield "output.weight", (VOCABULARY, self.hidden), Kind.Q4_0

    def mixer(self, layer: int) -> Iterator[Tensor]:
        """A layer's attention, or what it has in its place."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "attn_norm.weight", (h,), Kind.F32
        for name, rows, depth in (
            ("attn_q", q * (2 if self.has_gated_attention else 1), h), ("attn_k", kv, h), ("attn_v", kv, h), ("attn_output", h, q),
        ):  # fmt: skip
            yield f"{name}.weight", (rows, depth), Kind.Q4_0
            if self.has_biases:
                yield f"{name}.bias", (rows,), Kind.F32
        for name in ("attn_q_norm", "attn_k_norm") if self.has_head_norms else ():
            yield f"{name}.weight", (self.head_dim,), Kind.F32

    def mixture(self) -> Iterator[Tensor]:
        """A layer's norm, router and experts, and the one of all tokens."""
        e, h, w, s = self.experts, self.hidden, self.width, self.shared_width
        yield f"{self.second_norm}.weight", (h,), Kind.F32
        yield "ffn_gate_inp.weight", (e, h), Kind.F32
        if self.has_biases:
            yield "ffn_gate_inp.bias", (e,), Kind.F32
        for name, rows, depth in (("ffn_gate_exps", w, h), ("ffn_up_exps", w, h), ("ffn_down_exps", h, w)):
            yield f"{name}.weight", (e, rows, depth), self.expert_kind
            if self.has_biases:
                yield f"{name}.bias", (e, rows), Kind.F32
        for name, rows, depth in (("ffn_gate_shexp", s, h), ("ffn_up_shexp", s, h), ("ffn_down_shexp", h, s)) if s else ():
            yield f"{name}.weight", (rows, depth), Kind.Q4_0

    def kv_heads_of(self, layers: int) -> int | list[int]:
        """K/V heads of all layers, or of each."""
        return self.kv_heads

    def add_fields(self, writer: gguf.GGUFWriter, layers: int) -> None:
        """Their sizes."""
        writer.add_block_count(layers)
        writer.add_context_length(8192)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.width)
        if self.has_expert_width:
            writer.add_expert_feed_forward_length(self.width)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads_of(layers))
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(self.rope_theta)
        writer.add_expert_count(self.experts)
        writer.add_expert_used_count(self.choices)
        if self.shared_width:
            writer.add_expert_shared_feed_forward_length(self.shared_width)


@dataclass(frozen=True)
class GptOss(Model):
    """Every other layer has a window, and each head a sink."""

    window: int = 128

    def mixer(self, layer: int) -> Iterator[Tensor]:
        """With sinks."""
        yield from super().mixer(layer)
        yield "attn_sinks.weight", (self.heads,), Kind.F32

    def add_fields(self, writer: gguf.GGUFWriter, layers: int) -> None:
        """With the window, and YaRN's."""
        super().add_fields(writer, layers)
        writer.add_sliding_window(self.window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)


@dataclass(frozen=True)
class Granite(Model):
    """Layer 5 of every ten has attention, the others Mamba-2's states."""

    state_heads: int = 48
    state_head_dim: int = 64
    state_size: int = 128
    kernel: int = 4

    def kv_heads_of(self, layers: int) -> int | list[int]:
        """None where there are states."""
        return [self.kv_heads if layer % 10 == 5 else 0 for layer in range(layers)]

    def mixer(self, layer: int) -> Iterator[Tensor]:
        """Of either kind."""
        if layer % 10 == 5:
            yield from super().mixer(layer)
            return
        inner, heads = self.state_heads * self.state_head_dim, self.state_heads
        channels = inner + 2 * self.state_size
        yield "attn_norm.weight", (self.hidden,), Kind.F32
        yield "ssm_in.weight", (inner + channels + heads, self.hidden), Kind.Q4_0
        yield "ssm_conv1d.weight", (channels, self.kernel), Kind.F32
        yield "ssm_conv1d.bias", (channels,), Kind.F32
        yield "ssm_dt.bias", (heads,), Kind.F32
        yield "ssm_a", (heads, 1), Kind.F32
        yield "ssm_d", (heads, 1), Kind.F32
        yield "ssm_norm.weight", (1, inner), Kind.F32
        yield "ssm_out.weight", (self.hidden, inner), Kind.Q4_0

    def add_fields(self, writer: gguf.GGUFWriter, layers: int) -> None:
        """With those of states, and Granite's factors."""
        super().add_fields(writer, layers)
        writer.add_rope_scaling_finetuned(False)
        writer.add_attention_scale(0.0078125)
        writer.add_embedding_scale(12.0)
        writer.add_residual_scale(0.22)
        writer.add_logit_scale(6.0)
        writer.add_ssm_conv_kernel(self.kernel)
        writer.add_ssm_state_size(self.state_size)
        writer.add_ssm_group_count(1)
        writer.add_ssm_inner_size(self.state_heads * self.state_head_dim)
        writer.add_ssm_time_step_rank(self.state_heads)


@dataclass(frozen=True)
class Qwen3Next(Model):
    """The last of every four layers has attention, the others the gated delta rule."""

    key_heads: int = 16
    value_heads: int = 32
    state_head_dim: int = 128
    kernel: int = 4

    def mixer(self, layer: int) -> Iterator[Tensor]:
        """Of either kind."""
        if layer % 4 == 3:
            yield from super().mixer(layer)
            return
        keys, values, h = self.key_heads * self.state_head_dim, self.value_heads * self.state_head_dim, self.hidden
        yield "attn_norm.weight", (h,), Kind.F32
        yield "attn_qkv.weight", (2 * keys + values, h), Kind.Q4_0
        yield "attn_gate.weight", (values, h), Kind.Q4_0
        yield "ssm_ba.weight", (2 * self.value_heads, h), Kind.Q4_0
        yield "ssm_conv1d.weight", (2 * keys + values, self.kernel), Kind.F32
        yield "ssm_dt.bias", (self.value_heads,), Kind.F32
        yield "ssm_a", (self.value_heads,), Kind.F32
        yield "ssm_norm.weight", (self.state_head_dim,), Kind.F32
        yield "ssm_out.weight", (h, values), Kind.Q4_0

    def mixture(self) -> Iterator[Tensor]:
        """With a gate for the expert of all tokens."""
        yield from super().mixture()
        yield "ffn_gate_inp_shexp.weight", (self.hidden,), Kind.F32

    def add_fields(self, writer: gguf.GGUFWriter, layers: int) -> None:
        """With those of states."""
        super().add_fields(writer, layers)
        writer.add_full_attention_interval(4)
        writer.add_rope_dimension_count(self.head_dim // 4)
        writer.add_ssm_conv_kernel(self.kernel)
        writer.add_ssm_state_size(self.state_head_dim)
        writer.add_ssm_group_count(self.key_heads)
        writer.add_ssm_time_step_rank(self.value_heads)
        writer.add_ssm_inner_size(self.value_heads * self.state_head_dim)


MODELS: dict[str, Model] = {
    "qwen3-30b-a3b": Model("qwen3moe", 2048, 32, 4, 128, experts=128, choices=8, width=768, rope_theta=1e6),
    "gpt-oss-20b": GptOss(
        "gpt-oss", 2880, 64, 8, 64, experts=32, choices=4, width=2880, rope_theta=150000.0, expert_kind=Kind.MXFP4, has_biases=True,
        has_head_norms=False, second_norm="post_attention_norm",
    ),
    "granite-4-tiny": Granite(
        "granitehybrid", 1536, 12, 4, 128, experts=64, choices=6, width=512, rope_theta=10000.0, has_head_norms=False, shared_width=1024,
        has_expert_width=False,
    ),
    "qwen3-next": Qwen3Next(
        "qwen3next", 2048, 16, 2, 256, experts=512, choices=10, width=512, rope_theta=1e7, has_gated_attention=True, shared_width=512,
        second_norm="post_attention_norm",
    ),
}  # fmt: skip
