"""The form of GGUF architectures, each as a class of transformers: of the tables in `gguf_dense` and `gguf_mixtures`.

Names and keys are those of https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; what the converter changes of
values is that of https://github.com/ggml-org/llama.cpp/tree/master/conversion, and is undone in `gguf_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from cupola.compiler.sources.gguf_facts import Rule, always, has, real

Names = Mapping[str, str]


class Bare(str):
    """The name of a parameter itself, not of its module: no `.weight` comes behind it, and for a bias `_bias`."""


@dataclass(frozen=True)
class Join:
    """A parameter of which the file has several parts.

    Attributes:
        parts: in order, row under row; of experts within each.
        rows: how rows are ordered then (`gguf_tensors.ROW_ORDERS`); "": as they come.
        how: by what they are joined (`gguf_tensors.JOINS`).
    """

    parts: tuple[str, ...]
    rows: str = ""
    how: str = "rows"


ROTATED = {"attn_q": "rotated q", "attn_k": "rotated k"}
"""Rows of q and k that the converter interleaves, for models whose rotary embedding llama.cpp applies to neighbours."""

RMS: Mapping[str, Rule] = {"rms_norm_eps": real("attention.layer_norm_rms_epsilon")}
LAYER_NORM = real("attention.layer_norm_epsilon")
TOP: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
QKVO: Names = {
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
}
ATTENTION: Names = {"attn_norm": "model.layers.{}.input_layernorm", **QKVO}
HEAD_NORMS: Names = {"attn_q_norm": "model.layers.{}.self_attn.q_norm", "attn_k_norm": "model.layers.{}.self_attn.k_norm"}
FFN_NORM: Names = {"ffn_norm": "model.layers.{}.post_attention_layernorm"}
UP_DOWN: Names = {"ffn_up": "model.layers.{}.mlp.up_proj", "ffn_down": "model.layers.{}.mlp.down_proj"}
GATED: Names = {"ffn_gate": "model.layers.{}.mlp.gate_proj", **UP_DOWN}
LLAMA: Names = {**TOP, **ATTENTION, **FFN_NORM, **GATED}
SANDWICH: Names = {  # a norm on either side of attention and MLP
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
BEHIND: Names = {  # norms of what attention and MLP give, and none before them
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of GGUF, as a class of transformers.

    Attributes:
        model_type: transformers' name.
        model_class: the class.
        names: the file's names of parts -> the model's; those of layers have `{}` for the layer.
        names_with: further names, for files that have a certain tensor.
        config: the fields of the configuration that not every architecture has, each by its rule.
        rows: the parts whose rows the converter moved -> how (`gguf_tensors.ROW_ORDERS`).
        offset_norms: True if the file's norms hold 1 more than the model's.
        columns: the parts whose columns it moved -> how, in the same terms; their blocks, which lie across, are not kept.
        values: the tensors whose values or shapes it changed, such as `ssm_a` -> how, step by step (`gguf_tensors.CHANGES`).
        joins: the model's names of parameters that are several parts of the file -> which; named as `names`.
        plain_norms: norms that hold what the model's do, where others hold 1 more.
        transposed: the parts whose matrices, or experts' matrices, lie the other way round in the model.
        renamed: usual names of fields -> the configuration's own; None for one that it does not have.
        is_rotary: False for models that have no rotary embedding.
        is_partly_rotary: True if it may turn a part of each head only.
        rope: further settings of rotary embeddings, by kind of scaling.
        expected: keys that only tell what the class does anyhow -> the values that they may have; (): any.
        from_metadata: parameters that the file has as numbers for each layer: the model's name -> the key, and the parameter's axes.
        variants: other architectures of the same name, each behind a test of a file's metadata, keys without that name.
        has_heads: False for models without attention.
        is_latent: True if K and V are made of a latent vector, as in DeepSeek's; a head's size is then that of its rotary part.
        notes: for people.
    """

    model_type: str
    model_class: str
    names: Names = field(default_factory=lambda: LLAMA)
    config: Mapping[str, Rule] = field(default_factory=lambda: RMS)
    rows: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joins: Mapping[str, Join] = field(default_factory=dict)
    offset_norms: bool = False
    plain_norms: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    is_rotary: bool = True
    is_partly_rotary: bool = False
    rope: Mapping[str, Mapping[str, Rule]] = field(default_factory=dict)
    expected: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    from_metadata: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    variants: tuple[tuple[Callable[[Mapping[str, object]], bool], Architecture], ...] = ()
    has_heads: bool = True
    is_latent: bool = False
    names_with: Mapping[str, Names] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, metadata: Mapping[str, object]) -> Architecture:
        """The variant that a file is of, `metadata` being the architecture's, by keys without its name."""
        return next((variant for test, variant in self.variants if test(metadata)), self)

    def names_in(self, tensors: Container[str]) -> Names:
        """The names for a file of these tensors."""
        return {
            **self.names,
            **{part: name for tensor, names in self.names_with.items() if tensor in tensors for part, name in names.items()},
        }


SILU: Mapping[str, Rule] = {**RMS, "hidden_act": always("silu")}
BIASES: Mapping[str, Rule] = {"attention_bias": has("blk.0.attn_q.bias"), "mlp_bias": has("blk.0.ffn_up.bias")}
QKV_BIAS: Mapping[str, Rule] = {"attention_bias": has("blk.0.attn_q.bias")}
SCALES: Mapping[str, Rule] = {
    "embedding_multiplier": real("embedding_scale", 1.0),
    "residual_multiplier": real("residual_scale", 1.0),
    "logits_scaling": real("logit_scale", 1.0),
}
