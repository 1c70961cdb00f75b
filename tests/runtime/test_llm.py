"""LLM over a real, tiny compiled artifact: executor, weights, pages, text."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cupola.runtime.machine
from cupola.runtime.artifact.folder import Artifact, sha256_of
from cupola.runtime.artifact.manifest import FileSpec
from cupola.runtime.device.choose import choose_library
from cupola.runtime.device.executor import load
from cupola.runtime.device.memory import parse_bytes
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import ArtifactError, EngineError, OptionError, RequestError
from cupola.runtime.llm import LLM
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from tests.runtime.tiny_artifact import CONTEXT, VOCAB, follow_of, make_artifact, reference_logits
from tests.systems import needs

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("tiny") / "artifact")


@pytest.fixture
def llm(artifact):
    llm = LLM(artifact)
    yield llm
    llm.engine.check_idle()


def greedy(artifact: Artifact, token_ids: list[int], num_tokens: int) -> list[int]:
    tokens = list(token_ids)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(follow_of(artifact), tokens)[-1].argmax()))
    return tokens[len(token_ids) :]


@pytest.mark.parametrize(("dtype", "offset"), [("float32", 64), ("float32", 4), ("float16", 64), ("bfloat16", 64), ("bfloat16", 2)])
def test_logits(tmp_path, dtype, offset):
    llm = LLM(make_artifact(tmp_path / "a", dtype=dtype, offset=offset), max_num_batched_tokens=7)
    prompt = np.random.default_rng(0).integers(0, 256, 20).tolist()
    weight = follow_of(llm.artifact)
    for _ in range(2):  # not shortened by the prefix cache
        logits = llm.logits(prompt)
        assert (logits.dtype, logits.shape) == (np.float32, (20, VOCAB))
        np.testing.assert_allclose(logits, reference_logits(weight, prompt), atol=1e-4)
    assert llm.logits([1] * CONTEXT).shape == (CONTEXT, VOCAB)
    assert llm.generate(prompt, GREEDY)[0].outputs[0].token_ids == greedy(llm.artifact, prompt, 8)
    llm.engine.check_idle()


@pytest.mark.parametrize("kv_memory", ["1GB", 16 * 4 * 8])  # room for everything; for 16 blocks, one context
@pytest.mark.parametrize("caching", [False, True])
def test_generate(artifact, kv_memory, caching):
    llm = LLM(artifact, kv_memory=kv_memory, enable_prefix_caching=caching, max_num_batched_tokens=16)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, length).tolist() for length in (1, 5, 30, 50, 3, 12)]
    outputs = llm.generate(prompts, replace(GREEDY, n=2))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.finished
        assert [o.token_ids for o in output.outputs] == [greedy(artifact, prompt, 8)] * 2
    llm.engine.check_idle()


def test_text_in_and_out(llm):
    one, two = llm.generate(["hé", [1, 2, 3]], GREEDY)
    assert (one.prompt, two.prompt) == ("hé", None)
    assert one.prompt_token_ids == llm.tokenize("hé")
    assert one.outputs[0].text == llm.detokenize(one.outputs[0].token_ids)
    (single,) = llm.generate("hé", GREEDY)
    assert single.outputs == one.outputs
    assert single.metrics.arrival_time <= single.metrics.first_token_time <= single.metrics.finished_time


def test_stream_gives_the_same_text_also_interleaved(llm):
    params = replace(GREEDY, max_tokens=30)
    expected = [output.outputs[0].text for output in llm.generate(["ab", "cd"], params)]
    streams = [llm.stream("ab", params), llm.stream("cd", params)]
    texts = ["", ""]
    while any(piece := [next(stream, "") for stream in streams]):
        texts = [text + part for text, part in zip(texts, piece, strict=True)]
    assert texts == expected
    stream = llm.stream("ab", params)
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished_requests()


def test_chat(llm):
    messages = [{"role": "user", "content": "hi"}]
    assert llm.render_chat(messages) == "user: hi\nbot:"
    (output,) = llm.chat(messages, GREEDY)
    assert output.prompt == "user: hi\nbot:"
    assert [o.outputs for o in llm.chat([messages, messages], GREEDY)] == [output.outputs] * 2
    assert "".join(llm.stream_chat(messages, GREEDY)) == output.outputs[0].text


def test_generation_defaults_are_used_as_far_as_they_are_valid(llm):
    assert llm.default_sampling_params() == SamplingParams(temperature=0.5, max_tokens=3)
    assert len(llm.generate([1, 2])[0].outputs[0].token_ids) <= 3


def test_a_refused_request_leaves_nothing_behind(llm):
    with pytest.raises(RequestError, match="prompt: has the token id -1"):
        llm.generate([[1, 2], [-1]], GREEDY)
    for call in (
        lambda: llm.generate("", GREEDY),
        lambda: llm.generate([], GREEDY) or llm.generate([[]], GREEDY),
        lambda: llm.generate("a" * 10**6, GREEDY),
        lambda: llm.generate([[1] * (CONTEXT + 1)], GREEDY),
        lambda: llm.generate(["a", "b"], [GREEDY]),
        lambda: llm.logits([]),
        lambda: llm.chat([], GREEDY),
        lambda: list(llm.stream("a", replace(GREEDY, n=2))),
        lambda: llm.stream("a", {"n": 1}),
        lambda: llm.stream("a", replace(GREEDY, detokenize=False)),
        lambda: llm.generate("a", 5),
        lambda: llm.generate(["a"], ["b"]),
        lambda: llm.generate(5, GREEDY),
        lambda: llm.generate(None, GREEDY),
        lambda: llm.generate([None], GREEDY),
        lambda: llm.generate({"text": "a"}, GREEDY),
        lambda: llm.generate(["a", 5], GREEDY),
        lambda: llm.generate("a\ud800", GREEDY),
        lambda: llm.generate("a", replace(GREEDY, logprobs=21)),
    ):
        with pytest.raises(RequestError):
            call()
    assert not llm.engine.has_unfinished_requests()


def test_a_failing_model_is_an_engine_error_and_the_next_request_works(llm, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.executor._library, "_run", lambda *_: 1)
        with pytest.raises(EngineError, match="the compiled model failed: call 0, of kernel"):
            llm.generate([1], GREEDY)
    assert len(llm.generate([1], GREEDY)[0].outputs[0].token_ids) == 8


def test_without_a_tokenizer_token_ids_work_and_text_is_refused(tmp_path):
    llm = LLM(make_artifact(tmp_path / "a", with_tokenizer=False))
    (output,) = llm.generate([1, 2], GREEDY)
    assert (len(output.outputs[0].token_ids), output.outputs[0].text) == (8, "")
    for call in (
        lambda: llm.generate("text", GREEDY),
        lambda: llm.generate([1], replace(GREEDY, stop="a")),
        lambda: llm.stream([1], GREEDY),
        lambda: llm.tokenize("a"),
        lambda: llm.chat([{"role": "user", "content": "a"}], GREEDY),
    ):
        with pytest.raises(RequestError):
            call()
    assert llm.default_sampling_params() == SamplingParams()
    with pytest.raises(RequestError, match=r"prompt: is text, and this artifact has no tokenizer \(give token ids\)"):
        llm.generate("text", GREEDY)
    with pytest.raises(RequestError, match="stream: makes text, and this artifact has no tokenizer"):
        llm.stream([1], GREEDY)


def test_files_that_the_manifest_does_not_list_are_not_used(tmp_path):
    artifact = make_artifact(tmp_path / "a", with_tokenizer=False)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (artifact.path / name).write_text('{"temperature": 0.5}')
    llm = LLM(artifact.path)
    assert llm.tokenizer is None and llm.default_sampling_params() == SamplingParams()


def with_file(artifact: Artifact, name: str, text: str) -> Artifact:
    """The artifact with another text in one of its files."""
    (artifact.path / name).write_text(text)
    files = tuple(file for file in artifact.manifest.files if file.name != name)
    spec = FileSpec(name, len(text), sha256_of(artifact.path / name))
    manifest = replace(artifact.manifest, files=(*files, spec))
    (artifact.path / "manifest.json").write_text(manifest.to_json())
    return Artifact.open(artifact.path)


def test_templates_know_the_named_tokens(tmp_path):
    artifact = make_artifact(tmp_path / "a", template="{{ bos_token }}{{ pad_token }}{{ unk_token }}{{ messages[0].content }}")
    artifact = with_file(artifact, "special_tokens_map.json", '{"bos_token": "<b>", "pad_token": "<p>"}')
    artifact = with_file(artifact, "chat_template.tool_use.jinja", "{{ bos_token }}tools")
    assert LLM(artifact).render_chat([{"role": "user", "content": "x"}]) == "<b><p>x"
    for damage in ("[]", "{", '{"bos_token": 1}', '{"a b": "c"}'):
        with pytest.raises(ArtifactError, match="special_tokens_map.json"):
            LLM(with_file(artifact, "special_tokens_map.json", damage))


def test_the_models_stop_strings_end_answers(tmp_path):
    artifact = make_artifact(tmp_path / "a")
    prompt, params = [5, 6], replace(GREEDY, ignore_eos=False, stop_token_ids=[])
    text = LLM(artifact).generate(prompt, params)[0].outputs[0].text
    stop = text[len(text) // 2 :][:1]
    stopping = LLM(with_file(artifact, "generation_config.json", json.dumps({"stop_strings": [stop], "temperature": 0})))
    assert stopping.default_sampling_params().stop == [stop]
    (output,) = stopping.generate(prompt, params)
    assert output.outputs[0].text == text[: text.find(stop)] and output.outputs[0].stop_reason == stop
    assert stopping.generate(prompt, replace(params, ignore_eos=True))[0].outputs[0].text == text
    assert stopping.generate(prompt, replace(params, detokenize=False))[0].outputs[0].finish_reason == "length"


def test_all_logprobs(artifact):
    llm = LLM(artifact, max_logprobs=-1)
    (output,) = llm.generate([[1, 2]], replace(GREEDY, logprobs=-1, max_tokens=1))
    assert len(output.outputs[0].logprobs[0]) == VOCAB


def test_memory(artifact):
    assert [parse_bytes(text, "") for text in ("1GB", "512 MiB", "1.5kb", 7, "8")] == [10**9, 2**29, 1500, 7, 8]
    for text in ("", "GB", "-1GB", "1 parsec", "0", 0, -1, True, 1.5, None, "9" * 400 + "GB", "1e3"):
        with pytest.raises(OptionError, match="kv_memory"):
            parse_bytes(text, "kv_memory")
    with pytest.raises(OptionError, match="at least 32 bytes"):
        LLM(artifact, kv_memory=31)
    assert LLM(artifact, max_num_seqs=2).engine.executor.num_blocks == (2 * CONTEXT // 4,)
    assert LLM(artifact, max_num_seqs=100).engine.config.max_num_seqs == 8


@needs("to know what Linux lists of the processor")
def test_artifacts_for_other_machines_are_refused(artifact, monkeypatch):
    def change(**fields: object) -> Artifact:
        return replace(artifact, manifest=replace(artifact.manifest, **fields))

    (library,) = artifact.manifest.libraries

    def change_target(**fields: object) -> Artifact:
        return change(libraries=(replace(library, target=replace(library.target, **fields)),))

    triple = library.target.triple
    for other in ("riscv64-unknown-linux-gnu", triple.replace("linux-gnu", "windows-msvc")):
        with pytest.raises(ArtifactError, match=r"target\.triple"):
            load(change_target(triple=other), [4])
    with pytest.raises(ArtifactError, match="this CPU lacks avx9000"):
        load(change_target(features=("avx9000",)), [4])
    assert load(change(tvm_version="0.1"), [4]).num_blocks == (4,)  # a library needs no TVM
    function = artifact.manifest.functions[0]
    with pytest.raises(ArtifactError, match="takes 'mystery'"):
        load(change(functions=(replace(function, inputs=(replace(function.inputs[0], name="mystery"), *function.inputs[1:])),)), [4])
    monkeypatch.setattr(cupola.runtime.machine, "cpu_flags", lambda: frozenset({"wide", "wider"}))
    choose_library(change_target(features=("wider",)))


def test_a_library_that_is_none_is_refused(tmp_path):
    artifact = make_artifact(tmp_path / "a")
    library = artifact.path / "lib.so"
    library.write_bytes(b"not a library")
    files = tuple(replace(entry, sha256=sha256_of(library)) if entry.name == library.name else entry for entry in artifact.manifest.files)
    with pytest.raises(ArtifactError, match=r"lib\.so: can't be loaded"):
        load(replace(artifact, manifest=replace(artifact.manifest, files=files)), [4])


SCRIPT = """
import sys, os
from cupola.runtime.llm import LLM
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.structured.structured_outputs import StructuredOutputs
llm = LLM(sys.argv[1])
print(llm.generate([1, 2], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))[0].outputs[0].token_ids)
assert not {"torch", "transformers"} & set(sys.modules), "torch or transformers was imported"
assert not [name for name in sys.modules if name.startswith("cupola.") and name.split(".")[1] != "runtime"]
assert not {"tvm", "tvm_ffi", "ml_dtypes", "safetensors"} & set(sys.modules), "the compiler's packages were imported"
assert "libtvm" not in open("/proc/self/maps").read()
assert llm.engine.executor.num_threads == 2
"""


def test_the_runtime_alone_loads_neither_torch_nor_the_compiler(artifact, monkeypatch):
    monkeypatch.setenv("CUPOLA_NUM_THREADS", "2")
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(artifact.path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(greedy(artifact, [1, 2], 8))
    assert Path(artifact.path).is_dir()


def test_a_schema_beyond_grammars_is_checked_when_the_output_is_there(llm):
    twins = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}  # the grammar leaves one output
    unlike = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2, "not": {"const": [2]}}
    params = [replace(GREEDY, max_tokens=20, ignore_eos=False, structured_outputs=StructuredOutputs(json=s)) for s in (twins, unlike, True)]
    broken, kept, free = (output.outputs[0] for output in llm.generate(["a", "a", "a"], params))
    assert (broken.text, broken.schema_error) == ("[1, 1]", "at $: [1, 1] has non-unique elements")
    assert (kept.text, kept.schema_error, free.schema_error) == ("[1, 1]", None, None)
    cut = llm.generate("a", replace(params[0], max_tokens=2))[0].outputs[0]
    assert (cut.finish_reason, cut.schema_error) == ("length", None)
    assert "".join(llm.stream("a", params[1])) == "[1, 1]"
    said = []
    with pytest.raises(RequestError, match=r"structured_outputs.json: the output breaks its schema: at \$: \[1, 1\] has non-unique"):
        said.extend(llm.stream("a", params[0]))
    assert "".join(said) == "[1, 1]"
    with pytest.raises(RequestError, match="uniqueItems is not supported"):
        StructuredOutputs(json=twins, strict=True)
