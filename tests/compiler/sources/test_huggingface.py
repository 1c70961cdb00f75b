from __future__ import annotations

import json
import os
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cupola.compiler.sources import open_source
from cupola.runtime.errors import InputError, SourceError, UnsupportedError


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32 if values.itemsize == 4 else np.uint16)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_every_tensor_comes_back_bit_by_bit(make_model, tmp_path, model_type, dtype, shard):
    model = make_model(model_type, dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    source = open_source(tmp_path)
    expected = dict(model.named_parameters())
    assert source.tensors.keys() <= expected.keys() and source.config["model_type"] == model_type
    for name, tensor in source.tensors.items():
        values, integer = tensor.load(), torch.int32 if dtype is torch.float32 else torch.int16
        assert values.shape == tensor.shape and str(values.dtype) == tensor.dtype and values.flags.c_contiguous
        np.testing.assert_array_equal(bits(values).view(f"int{8 * values.itemsize}"), expected[name].detach().view(integer).numpy())


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(folder, name="config.json", **changes):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refuse(folder, message, error=SourceError):
    start = time.process_time()  # whatever else the machine has to do
    with pytest.raises(error, match=message) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value) and time.process_time() - start < 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 0, r"config\.json: num_attention_heads: is 0, not a whole number"),
        ("num_attention_heads", -4, "num_attention_heads: is -4"),
        ("num_attention_heads", True, "num_attention_heads: is True"),
        ("num_attention_heads", "4", "num_attention_heads: is '4'"),
        ("num_attention_heads", 10**30, "num_attention_heads: is 1000"),
        ("num_key_value_heads", 0, "num_key_value_heads: is 0"),
        ("num_key_value_heads", 3, "num_key_value_heads: 3 do not divide the 4"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: is 1000000000"),
        ("hidden_size", -1, "hidden_size: is -1"),
        ("hidden_size", ..., "hidden_size: is missing"),
        ("vocab_size", ..., "vocab_size: is missing"),
        ("vocab_size", 1.5, r"vocab_size: is 1\.5"),
        ("head_dim", 0, "head_dim: is 0"),
        ("model_type", ..., "model_type: is missing"),
        ("model_type", "lama", r"model_type: is 'lama'.*did you mean llama"),
        ("model_type", ["llama"], "model_type: is"),
        ("rms_norm_eps", "small", "transformers refuses it"),
        ("rope_parameters", {"rope_type": "zigzag", "rope_theta": 1.0}, r"rope_parameters\.rope_type: is 'zigzag'"),
        ("eos_token_id", "end", "eos_token_id: is 'end'|eos_token_id"),
    ],
)
def test_absurd_configurations(folder, field, value, message):
    (folder / "generation_config.json").unlink()
    edit(folder, **{field: value})
    refuse(folder, message)


def test_code_and_other_kinds_of_models_are_refused(folder):
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling.Evil"}, architectures=["EvilForCausalLM"])
    refuse(folder, r"config\.json: auto_map: asks to run code of its own", UnsupportedError)
    with pytest.raises(UnsupportedError, match="only the model classes that transformers ships"):
        open_source(folder, trust_remote_code=True)
    edit(folder, architectures=["LlamaForCausalLM"])
    assert open_source(folder).notes[0] == "the code that auto_map names is not run: transformers' own class of llama is taken"
    edit(folder, model_type="evil", architectures=["LlamaForCausalLM"])
    refuse(folder, r"config\.json: auto_map: asks to run code of its own", UnsupportedError)
    edit(folder, auto_map=..., model_type="llama", quantization_config={"quant_method": "aqlm"})
    refuse(folder, r"quantization_config\.quant_method: is 'aqlm': weights quantized in a way that cupola does not read", UnsupportedError)
    edit(folder, quantization_config=..., model_type="vit")
    refuse(
        folder,
        "model_type: transformers has no causal language model of the type 'vit', which is a part of another model or no language",
        UnsupportedError,
    )


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"])
def test_json_that_is_none(folder, content):
    (folder / "config.json").write_bytes(content)
    refuse(folder, r"config\.json: (is not|holds)")


def test_pickles_are_never_opened(folder):
    (folder / "model.safetensors").unlink()
    refuse(folder, r"model\.safetensors: is missing")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refuse(folder, r"pytorch_model\.bin: is a pickle")
    refuse(folder / "pytorch_model.bin", r"pytorch_model\.bin: is a pickle")
    (folder / "model.pt2").write_bytes(b"PK\3\4")
    refuse(folder / "model.pt2", "is a pickle")


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/a.safetensors", "..", "", "a\0b", "x" * 300, "C:\\a.safetensors"])
def test_an_index_that_leads_out_of_the_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refuse(folder, "not the plain name of a file")


def test_links_that_lead_out_of_the_folder(folder):
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    os.symlink(outside, folder / "model.safetensors")
    refuse(folder, r"model\.safetensors: is a link that leads out")
    (folder / "model.safetensors").unlink()
    (folder / "kept").mkdir()
    shutil.move(outside, folder / "kept" / "weights")
    os.symlink(folder / "kept" / "weights", folder / "model.safetensors")
    assert open_source(folder).tensors


def test_the_hub_s_own_cache_is_links(tiny_folder, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in tiny_folder.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        os.symlink(f"../../blobs/blob-{path.name}", snapshot / path.name)
    assert open_source(snapshot).sha256 == open_source(tiny_folder).sha256


def test_indices_that_do_not_fit_their_files(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": good | {"model.extra.weight": good["model.norm.weight"]}}))
    note = "model.safetensors.index.json names 1 tensors that no file holds, such as model.extra.weight"
    assert note in open_source(tmp_path).notes
    index.write_text(json.dumps({"weight_map": {**good, "model.norm.weight": "model-9.safetensors"}}))
    refuse(tmp_path, r"model-9\.safetensors: is missing")
    for wrong in ([], {}, {"a": 1}, {"a\nb": "c"}, None):
        index.write_text(json.dumps({"weight_map": wrong}))
        refuse(tmp_path, "weight_map: does not map")
    shutil.copy(tmp_path / good["model.norm.weight"], tmp_path / "again.safetensors")
    index.write_text(json.dumps({"weight_map": good | {"x": "again.safetensors"}}))
    refuse(tmp_path, "is in another file of the folder too")


def test_a_single_file_goes_before_an_index(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    source = open_source(tmp_path)
    assert "lm_head.weight" in source.tensors
    assert "model.safetensors.index.json is left out: model.safetensors has the weights" in source.notes


def test_infinity_as_transformers_writes_it(folder):
    edit(folder, time_step_limit=[0.0, {"__float__": "Infinity"}], other={"__float__": "Infinity", "more": 1}, third={"__float__": "1"})
    config = open_source(folder).config
    assert config["time_step_limit"] == [0.0, float("inf")]
    assert config["other"] == {"__float__": "Infinity", "more": 1} and config["third"] == {"__float__": "1"}


def with_header(path, header, data=b"\0" * 64, length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)


def tensor(begin, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(0, 16), "b": tensor(8, 64, (14,))},
        {"a": tensor(0, 32, (8,)), "b": tensor(0, 64, (16,))},
        {"a": tensor(0, 16)},
        {"a": tensor(16, 64, (12,))},
        {"a": tensor(0, 128, (32,))},
        {"a": tensor(0, 64, (15,))},
        {"a": tensor(0, 64, (1 << 62, 16))},
        {"a": tensor(0, 64, (-16,))},
        {"a": tensor(64, 0, (16,))},
        {"a": tensor(0, 64, (16,), "F99")},
        {"a": {"dtype": "F32"}},
        {"a": 1},
        b"{",
        b"[]",
        b"\xff" * 40,
        b'{"a":' * 50_000,
        b"",
    ],
)
def test_damaged_safetensors_headers(folder, header):
    with_header(folder / "model.safetensors", header)
    refuse(folder, r"model\.safetensors: is damaged")


@pytest.mark.parametrize("length", [1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_oversized_safetensors_headers(folder, length):
    with_header(folder / "model.safetensors", {"a": tensor(0, 64, (16,))}, length=length)
    refuse(folder, r"model\.safetensors: is damaged")


def test_a_name_that_does_not_print(folder):
    with_header(folder / "model.safetensors", {"a\nb": tensor(0, 64, (16,))})
    refuse(folder, "is damaged: a name in the header is not printable")


def test_values_at_odd_addresses(folder):
    header = json.dumps({"model.norm.weight": tensor(0, 64, (16,))}).encode()
    values = np.arange(16, dtype=np.float32)
    with_header(folder / "model.safetensors", header + b" " * (1 - len(header) % 4), values.tobytes())
    loaded = open_source(folder).tensors["model.norm.weight"].load()
    assert loaded.flags.aligned and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, values)


def test_a_name_twice_in_a_safetensors_header(folder):
    one = json.dumps(tensor(0, 64, (16,)))
    with_header(folder / "model.safetensors", f'{{"a": {one}, "a": {one}}}'.encode())
    refuse(folder, r"model\.safetensors: is damaged")


def test_tensors_of_other_types(folder):
    double = torch.tensor([1.1, 1e300], dtype=torch.float64)
    integers = torch.ones(64, dtype=torch.int16)
    buffer = torch.ones(4, dtype=torch.bool)
    save_file({"h.0.attn.bias": buffer, "a": torch.ones(2), "b": double, "c": integers}, folder / "model.safetensors")
    tensors = open_source(folder).tensors
    assert tensors.keys() == {"a", "b", "c"}
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(tensors["b"].load(), double.numpy().astype(np.float32))
    with pytest.raises(UnsupportedError, match=r"model\.safetensors: c: has the type I16 \(give the model in f32, f16 or bf16\)"):
        tensors["c"].load()


def test_empty_and_cut_off_files(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        refuse(folder, r"model\.safetensors: (is damaged|cannot be read)")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2500), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3), st.none() | st.integers(0, 3000)
)
def test_random_damage_never_escapes(tiny_folder, tmp_path, changes, length):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(tiny_folder, folder)
    data = bytearray((tiny_folder / "model.safetensors").read_bytes())
    for at, value in changes:
        data[at : at + len(value)] = value
    (folder / "model.safetensors").write_bytes(data[:length])
    try:
        source = open_source(folder)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for each in source.tensors.values():
        assert each.load().shape == each.shape


def test_generation_defaults_keep_to_the_vocabulary(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 999], "temperature": 0.5}))
    source = open_source(folder)
    assert source.generation_config == {"eos_token_id": [2], "temperature": 0.5}
    assert any("eos_token_id 999 left out" in note for note in source.notes)
    (folder / "generation_config.json").unlink()
    assert open_source(folder).generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
