from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM

from cupola.compiler.sources import open_source
from cupola.runtime.errors import SourceError, UnsupportedError


def assert_same_tensors(source, model):
    expected = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert source.tensors.keys() == expected.keys()
    for name, tensor in source.tensors.items():
        values = tensor.load()
        assert values.flags.c_contiguous and values.shape == tensor.shape and str(values.dtype) == tensor.dtype
        assert tensor.num_bytes == values.nbytes
        np.testing.assert_array_equal(values.astype(np.float32), expected[name], err_msg=name)


@pytest.mark.by_turns  # as the logits of tests/e2e/test_parity.py say too
def test_smollm2_is_what_transformers_reads(smollm2):
    source = open_source(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype="float32")
    assert_same_tensors(source, model)
    config = AutoConfig.for_model(**source.config)
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                  "head_dim", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act"):  # fmt: skip
        assert getattr(config, field) == getattr(model.config, field), field
    assert config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps)
    assert config.rope_parameters == model.config.rope_parameters
    assert source.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}
    assert source.format == "gguf" and source.notes == () and "im_start" in source.chat_templates["default"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0], ids=lambda kind: kind.name
)
def test_tiny_models_are_what_transformers_reads(write_gguf, make_model, tmp_path, architecture, kind):
    head_dim = {"head_dim": 128} if architecture == "qwen3" else {}
    original = make_model(architecture, num_key_value_heads=2, tie_word_embeddings=architecture == "qwen2", **head_dim)
    path = write_gguf(tmp_path / "tiny.gguf", architecture, kind, model=original)
    source = open_source(path)
    assert source.config["model_type"] == architecture
    assert source.config["tie_word_embeddings"] == (architecture == "qwen2")
    assert_same_tensors(source, AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32"))
    rebuilt = AutoConfig.for_model(**source.config)
    for field in ("hidden_size", "num_key_value_heads", "rope_parameters", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(rebuilt, field) == getattr(original.config, field), field
    if kind is Kind.F32:
        assert_same_tensors(source, original)


def test_llama_biases_are_put_in_order_too(write_gguf, make_model, tmp_path):
    model = make_model("llama", num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    source = open_source(write_gguf(tmp_path / "tiny.gguf", model=model))
    assert source.config["attention_bias"] and source.config["mlp_bias"]
    assert_same_tensors(source, model)


def unpack_nibbles(packed):
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_blocks_follow_the_format(write_gguf, tmp_path, kind):
    """The three block formats written out: 32 values with a scale d, and a minimum m or none."""
    path = write_gguf(tmp_path / "tiny.gguf", "qwen3", kind)
    stored = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.1.ffn_up.weight")
    blocks = np.array(stored.data).reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind is Kind.Q8_0:
        values = scale * blocks[:, 2:].view(np.int8)
    elif kind is Kind.Q4_0:
        values = scale * (unpack_nibbles(blocks[:, 2:]) - 8)
    else:
        values = scale * unpack_nibbles(blocks[:, 4:]) + blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(open_source(path).tensors["model.layers.1.mlp.up_proj.weight"].load().reshape(-1, 32), values)


def llama3_factors(theta, head_dim, factor, context):
    """As llama.cpp's converter computes `rope_freqs.weight`."""
    factors = []
    for index in range(0, head_dim, 2):
        frequency = 1.0 / theta ** (index / head_dim)
        wavelength = 2 * np.pi / frequency
        if wavelength < context / 4:
            factors.append(1)
        elif wavelength > context / 1:
            factors.append(factor)
        else:
            smooth = (context / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_in_its_tensor(write_gguf, make_model, tmp_path, factor):
    model = make_model("llama", num_key_value_heads=2, head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    factors = llama3_factors(500000.0, 64, factor, 8192)
    source = open_source(
        write_gguf(tmp_path / "a.gguf", model=model, fields=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    )
    assert source.config["rope_parameters"] == {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight: scales rotary frequencies in an unknown way"):
        strange = factors * np.linspace(1, 2, 32, dtype=np.float32)
        open_source(write_gguf(tmp_path / "b.gguf", model=model, fields=lambda writer: writer.add_tensor("rope_freqs.weight", strange)))


def test_yarn_and_linear_scaling(write_gguf, tmp_path):
    def yarn(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32768)

    rope = open_source(write_gguf(tmp_path / "a.gguf", "qwen2", fields=yarn)).config["rope_parameters"]
    assert rope == {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32768}

    def linear(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    rope = open_source(write_gguf(tmp_path / "b.gguf", fields=linear)).config["rope_parameters"]
    assert rope == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedError, match=r"qwen2\.rope\.scaling\.type: 'longrope' is not"):
        open_source(
            write_gguf(tmp_path / "c.gguf", "qwen2", fields=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE))
        )


def linear(factor):
    return {"rope_type": "linear", "rope_theta": 10000.0, "factor": factor}


PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"scale_linear": 4.0}, linear(4.0)),
        ({"scale_linear": 0.0}, PLAIN),
        ({"scaling.factor": 4.0}, linear(4.0)),
        ({"scaling.factor": 2.0, "scale_linear": 4.0}, linear(2.0)),
        ({"scaling.factor": 1.0}, PLAIN),
        ({"scaling.type": "linear"}, PLAIN),
        ({"scaling.type": "linear", "scale_linear": 4.0}, linear(4.0)),
        ({"scaling.type": "none", "scaling.factor": 4.0, "scaling.original_context_length": 512}, PLAIN),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 1.0}, YARN),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_beta_fast": 16.0}, {**YARN, "beta_fast": 16.0}),
    ],
)
def test_rope_scaling_is_what_llama_cpp_reads(write_gguf, tmp_path, fields, rope):
    def change(writer):
        for key, value in fields.items():
            add = writer.add_string if isinstance(value, str) else writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"llama.rope.{key}", value)

    source = open_source(write_gguf(tmp_path / "tiny.gguf", fields=change))
    assert source.config["rope_parameters"] == rope and source.notes == ()


def test_metadata_that_the_format_does_not_know_is_told(write_gguf, tmp_path):
    def change(writer):
        writer.add_float32("llama.attention.brand_new", 0.5)
        writer.add_bool("llama.attention.causal", True)
        writer.add_float32("llama.logit_scale", 1.0)
        writer.add_float32("llama.residual_scale", 0.0)
        writer.add_uint32("llama.vocab_size", 320)
        writer.add_float32("qwen2.attention.brand_new", 0.5)

    source = open_source(write_gguf(tmp_path / "tiny.gguf", fields=change))
    assert source.notes == ("metadata that is not known was left out: llama.attention.brand_new",)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda writer: writer.add_float32("llama.rope.scaling.attn_factor", 0.5), UnsupportedError, r"llama\.rope\.scaling\.attn_factor"),
        (lambda writer: writer.add_string("llama.rope.scaling.factor", "4"), SourceError, r"scaling\.factor: is '4', not a positive"),
        (lambda writer: writer.add_float32("llama.rope.scale_linear", -1.0), SourceError, r"scale_linear: is -1\.0, not a positive"),
        (lambda writer: writer.add_causal_attention(False), UnsupportedError, r"llama\.attention\.causal: is not read"),
        (
            lambda writer: writer.add_rope_dimension_sections([8, 8, 8, 8]),
            UnsupportedError,
            r"llama\.rope\.dimension_sections: is not read",
        ),
        (lambda writer: writer.add_float32("llama.attention.temperature_scale", 0.1), UnsupportedError, r"temperature_scale: is not read"),
        (lambda writer: writer.add_expert_count(8), SourceError, r"llama\.expert_used_count: is missing"),
        (lambda writer: writer.add_expert_group_count(2), UnsupportedError, r"llama\.expert_group_count: is not read"),
        (lambda writer: writer.add_sliding_window(8), UnsupportedError, r"llama\.attention\.sliding_window"),
        (lambda writer: writer.add_uint16("split.count", 3), SourceError, r"split\.count: the file is one of 3, and its name says 1"),
        (lambda writer: writer.add_rope_dimension_count(8), UnsupportedError, r"rope\.dimension_count: differs from the head size, 16"),
        (
            lambda writer: writer.add_tensor("output.weight", np.zeros((5, 64), np.float64)),
            UnsupportedError,
            r"output\.weight: has the type F64",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(write_gguf, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        open_source(write_gguf(tmp_path / "tiny.gguf", fields=change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.head_count", 0, r"attention\.head_count: is 0"),
        ("attention.key_length", 15, r"attention\.key_length: the head size is 15"),
        ("attention.key_length", 0, r"attention\.key_length: the head size is 0"),
        ("attention.head_count", 5, r"num_attention_heads|num_key_value_heads|rows"),
        ("block_count", 0, r"num_hidden_layers: is 0"),
        ("embedding_length", 1 << 31, r"hidden_size: is 2147483648"),
        ("context_length", 0, r"max_position_embeddings: is 0"),
    ],
)
def test_absurd_sizes_are_refused(tiny_gguf, tmp_path, key, value, message):
    data = bytearray(tiny_gguf.read_bytes())
    at = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    data[at : at + 4] = value.to_bytes(4, "little")
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "bad.gguf")


def test_names_that_only_look_like_layers_are_left_out(write_gguf, tmp_path):
    names = [f"blk.{'9' * 900}.attn_q.weight", "blk.00.attn_norm.weight", "blk.1.strange.weight"]

    def change(writer):
        for name in names:
            writer.add_tensor(name, np.zeros((64, 64), np.float32))

    source = open_source(write_gguf(tmp_path / "tiny.gguf", fields=change))
    assert len(source.tensors) == 20 and source.notes[0].startswith("3 unknown tensors left out, such as blk.9999")
