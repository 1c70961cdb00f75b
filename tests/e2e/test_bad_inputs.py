"""Bad input through the real command line: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cupola.models.llama import FAMILY
from cupola.runtime.artifact.manifest import FORMAT_VERSION
from tests.e2e.calls import Call, Result, run_calls
from tests.runtime.tokenizers_for_tests import byte_level, save

CONTEXT, VOCAB = 256, 320
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@dataclass(frozen=True)
class World:
    """A tiny model, its artifact with a tokenizer and a chat template, and what compiling it said."""

    folder: Path
    model: Path
    artifact: Path
    said: str
    names: list[str] = field(default_factory=list)

    def copy_of(self, what: Path, change: Callable[[Path], object]) -> str:
        """A changed copy, under a name of its own."""
        self.names.append("")
        copy = self.folder / f"copy{len(self.names)}" / what.name
        shutil.copytree(what, copy)
        change(copy)
        return str(copy)

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bad_inputs")
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        FAMILY.model_type, **{**FAMILY.tiny, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    save(byte_level(), folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    command = [sys.executable, "-m", "cupola", "compile", str(folder / "model"), "-o", str(folder / "tiny")]
    done = subprocess.run(command, env={**os.environ, "CUPOLA_DEBUG": "4"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return World(folder, folder / "model", folder / "tiny", done.stderr)


# What is asked for, by name: how to make the call, and what the line must say.

Make = Callable[[World], Call]
BAD: dict[str, tuple[Make, str]] = {}


def arguments(name: str, expected: str, *values: str) -> None:
    """`{model}`, `{artifact}` and `{folder}` in a value stand for the paths."""

    def make(world: World) -> Call:
        places = {"{model}": world.model, "{artifact}": world.artifact, "{folder}": world.folder}
        return Call([_fill(value, places) for value in values])

    BAD[name] = (make, expected)


def _fill(value: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        value = value.replace(name, str(path))
    return value


for option, value, expected in [
    ("--target", "abacus", "target: 'abacus' is unknown (choose from"),
    ("--target", "", "target: '' is unknown"),
    ("--quant", "q9", "quant: 'q9' is unknown"),
    ("--kv-dtype", "int3", "kv-dtype: 'int3' is unknown"),
    ("--context", "0", "context: is 0, not a whole number from 1"),
    ("--context", "-1", "context: is -1"),
    ("--context", "9" * 40, "context: is 999"),
    ("--context", "many", "--context"),
    ("--context", "1.5", "--context"),
    ("--context", "257", "context: is 257, but the model was made for 256 tokens (give 256 or less)"),
    ("--block-size", "3", "block-size: is 3, not a power of two"),
    ("--block-size", "0", "block-size: is 0"),
    ("--block-size", "2048", "block-size: is 2048"),
    ("--max-batch", "0", "max-batch: is 0"),
    ("--max-batch", "1000000", "max-batch: is 1000000"),
    ("--out", "{folder}", "out: exists and is not an artifact"),
    ("--out", "{model}/config.json", "out: exists and is not an artifact"),
    ("--out", "{model}/config.json/a", "out: cannot be"),
    ("--out", "/proc/nowhere/a", "out: cannot be written"),
    ("--out", ".", "out: is the current folder"),
    ("--out", "x" * 300, "out: cannot be"),
    ("--frobnicate", "1", "--frobnicate"),
]:
    arguments(f"compile {option} {value[:20]}", expected, "compile", "{model}", option, value)
for option, value, expected in [
    ("--temperature", "-1", "temperature: is -1.0"),
    ("--temperature", "nan", "temperature: is nan"),
    ("--temperature", "warm", "--temperature"),
    ("--top-p", "2", "top_p: is 2.0"),
    ("--top-p", "-0.1", "top_p: is -0.1"),
    ("--top-k", "-5", "top_k: is -5"),
    ("--min-p", "1.5", "min_p: is 1.5"),
    ("--max-tokens", "0", "max_tokens: is 0"),
    ("--max-tokens", "9" * 30, "max_tokens: is 999"),
    ("--seed", "9" * 30, "seed: is 999"),
    ("--prompt", "", "prompt: is empty"),
    ("--prompt", "long " * 100, f"prompt: This model's maximum context length is {CONTEXT} tokens. However, your prompt has 500 tokens."),
    ("--prompt", "x" * 100_000, "However, your prompt has 100000 characters, too many"),
    ("--prompt", "a\udcff", "prompt: has a lone surrogate"),
    ("--quant", "f16", "is compiled already"),
    ("--context", "0", "context: is 0"),
]:
    for flag in ("", "--raw"):
        arguments(f"run {option} {value[:12]!a} {flag}", expected, "run", "{artifact}", "--prompt=hi", option, value, *filter(None, [flag]))
for option, value, expected in [
    ("--context", "257", "context: is 257"),
    ("--context", "0", "context: is 0"),
    ("--max-num-seqs", "65", "max-num-seqs: is 65"),
    ("--max-num-batched-tokens", "-1", "max-num-batched-tokens: is -1"),
]:
    arguments(f"inspect {option} {value}", expected, "inspect", "{artifact}", option, value)
for words, expected in [
    ("frobnicate", "frobnicate"),
    ("compile", "Missing argument 'source'"),
    ("run", "Missing argument 'model'"),
    ("chat", "Missing argument 'model'"),
    ("inspect", "Missing argument 'artifact'"),
    ("inspect {model}", "manifest.json: can't be read"),
    ("inspect {model}/config.json", "manifest.json: can't be read: Not a directory"),
    ("compile {artifact} -o out", "is a compiled artifact already"),
    ("compile nothing-like-it -o out", "no such file, folder or model"),
    ("compile smolm2 -o out", "did you mean smollm2?"),
    (f"compile {'x' * 5000} -o out", "no such file"),
    (f"run {'x' * 5000} -p hi", "no such file"),
    ("run nothing-like-it -p hi", "no such file"),
    ("chat {artifact} --temperature 1000", "temperature: is 1000.0"),
    ("run {artifact} -p hi --raw --system s", "system: needs the chat template"),
    ("run {artifact}", "prompt: is empty"),
    ("models --frobnicate", "--frobnicate"),
    ("bench", "Missing argument 'model'"),
    ("bench {artifact} -p many", "prompt: 'many' is not a whole number"),
    ("bench {artifact} -p 0 -d 256", f"tg128 @ d256: needs a context of 385 tokens, and the artifact has {CONTEXT}"),
    ("bench nothing-like-it", "no such file"),
    ("eval {artifact}", "Missing option '--text'"),
    ("eval {artifact} --text nothing", "nothing: text: can't be read: No such file"),
    ("eval {artifact} --text /dev/null", "/dev/null: text: is empty"),
    ("eval {artifact} --text /dev/zero", "/dev/zero: text: has more than 64 MiB"),
    ("eval {artifact} --text {artifact}/lib.so", "lib.so: text: is not UTF-8"),
    ("eval {artifact} --text {model}/tokenizer.json --context 257", "context: is 257, not from 4 to 256"),
]:
    arguments(words[:60], expected, *words.split())


def environment(name: str, value: str, expected: str, *words: str) -> None:
    BAD[f"{name}={value}"] = (lambda world: Call([_fill(w, {"{model}": world.model}) for w in words], environment={name: value}), expected)


environment("CUPOLA_DEBUG", "9", "CUPOLA_DEBUG: is '9', not a whole number from 0 to 4", "models")
environment("CUPOLA_DEBUG", "-1", "CUPOLA_DEBUG: is '-1'", "compile", "{model}", "-o", "out")
environment("CUPOLA_NUM_THREADS", "zero", "CUPOLA_NUM_THREADS: is 'zero', not a whole number from 1", "models")
environment("CUPOLA_NUM_THREADS", "0", "CUPOLA_NUM_THREADS: is '0'", "targets")
environment("CUPOLA_NUM_THREADS", "9" * 5000, "CUPOLA_NUM_THREADS: is '999", "compile", "{model}", "-o", "out")
environment("CUPOLA_CACHE", "/proc/nowhere", "CUPOLA_CACHE: cannot be written", "run", "{model}", "-p", "hi")


def standard_input(name: str, content: bytes, expected: str, *words: str) -> None:
    def make(world: World) -> Call:
        return Call([_fill(word, {"{artifact}": world.artifact}) for word in words], stdin=world.file(name.replace(" ", "_"), content))

    BAD[f"stdin: {name}"] = (make, expected)


standard_input("no UTF-8", b"caf\xe9", "standard input: prompt: is not UTF-8 at byte 3", "run", "{artifact}")
standard_input("empty", b"\n", "prompt: is empty", "run", "{artifact}")
standard_input("huge", b"a" * (17 << 20), "standard input: prompt: has more than 16 MiB", "run", "{artifact}")
standard_input("too long", b"a" * (1 << 20), "your prompt has 1048576 characters, too many", "run", "{artifact}")
standard_input("no UTF-8 in a chat", b"caf\xe9\n", "standard input: is not UTF-8", "chat", "{artifact}")


def artifact(name: str, expected: str, change: Callable[[Path], object], *command: str) -> None:
    """`run` (or another command) on a changed artifact."""
    words = command or ("run", "--prompt", "hi")
    BAD[f"artifact: {name}"] = (lambda world: Call([words[0], world.copy_of(world.artifact, change), *words[1:]]), expected)


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))

    return edit


def without(*names: str) -> Callable[[Path], None]:
    """The artifact as it would be without these files."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        manifest(lambda data: data.update(files=[file for file in data["files"] if file["name"] not in names]))(folder)

    return edit


def flip(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 255
        (folder / name).write_bytes(content)

    return edit


def link_out(folder: Path) -> None:
    (folder / "lib.so").rename(folder.parent / "lib.so")
    (folder / "lib.so").symlink_to("../lib.so")


SHARD = "weights-00001.safetensors"
artifact("no manifest", "manifest.json: can't be read: No such file", lambda folder: (folder / "manifest.json").unlink())
artifact("cut manifest", "manifest.json: is not JSON", lambda folder: os.truncate(folder / "manifest.json", 3000))
artifact("deep manifest", "manifest.json: is not JSON", lambda folder: (folder / "manifest.json").write_text("[" * 10**5))
artifact(
    "newer", f"format_version: is 99, this cupola reads {FORMAT_VERSION} (upgrade cupola)", manifest(lambda m: m.update(format_version=99))
)
artifact("older", "format_version: is 0", manifest(lambda m: m.update(format_version=0)), "inspect")
artifact(
    "other CPU", "target.features: this CPU lacks avx9000", manifest(lambda m: m["libraries"][0]["target"]["features"].append("avx9000"))
)
artifact(
    "other architecture",
    "target.triple: is 'riscv64-linux-gnu'",
    manifest(lambda m: m["libraries"][0]["target"].update(triple="riscv64-linux-gnu")),
)
artifact("other CPU in a chat", "this CPU lacks", manifest(lambda m: m["libraries"][0]["target"]["features"].append("avx9000")), "chat")
artifact("a missing device", "device: is 'z80', and the artifact has", lambda folder: None, "run", "--prompt", "hi", "--device", "z80")
artifact("zero heads", "num_kv_heads: is 0", manifest(lambda m: m["kv"]["groups"][0].update(num_kv_heads=0)))
artifact("block size 0", "kv.block_size: is 0", manifest(lambda m: m["kv"].update(block_size=0)), "inspect")
artifact("no forward", "functions: there is no 'forward'", manifest(lambda m: m.update(functions=[])), "inspect")
artifact("no library", "lib.so: is missing", lambda folder: (folder / "lib.so").unlink())
artifact("cut library", "lib.so: has 99 bytes", lambda folder: os.truncate(folder / "lib.so", 99))
artifact("changed library", "lib.so: does not match its SHA-256", flip("lib.so"))
artifact("linked library", "lib.so: is a link to outside of the artifact", link_out)
artifact("cut weights", f"{SHARD}: has 5000 bytes", lambda folder: os.truncate(folder / SHARD, 5000))
artifact("changed weights", f"{SHARD}: does not match its SHA-256", flip(SHARD))
artifact("path in a name", "is not a plain file name", manifest(lambda m: m["files"][0].update(name="../lib.so")), "inspect")
artifact("text without a tokenizer", "this artifact has no tokenizer", without("tokenizer.json", "chat_template.jinja"))
artifact("chat without a template", "has no chat template (use `cupola run`)", without("chat_template.jinja"), "chat")
artifact("system without a template", "system: needs a chat template", without("chat_template.jinja"), "run", "-p", "hi", "--system", "s")


def source(name: str, expected: str, change: Callable[[Path], object]) -> None:
    """`compile` of a changed model."""
    BAD[f"source: {name}"] = (lambda world: Call(["compile", world.copy_of(world.model, change), "-o", "out"]), expected)


def source_file(name: str, expected: str, content: bytes) -> None:
    BAD[f"source: {name}"] = (lambda world: Call(["compile", world.file(name, content), "-o", "out"]), expected)


def config(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **values}))

    return edit


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Rewrites the header of the weights."""

    def edit(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return edit


def overlap(header: dict[str, Any]) -> None:
    first, second = (header[name] for name in header if "layernorm" in name and name.startswith("model.layers.0"))
    second["data_offsets"] = first["data_offsets"]


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../outside.safetensors"}}))


def gguf(num_tensors: int, num_fields: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields)


WEIGHTS = "model.safetensors"
source("no config", "config.json: is missing", lambda folder: (folder / "config.json").unlink())
source("config is no JSON", "config.json", lambda folder: (folder / "config.json").write_text("{"))
source("zero heads", "num_attention_heads", config(num_attention_heads=0))
source("heads that do not group", "config.json", config(num_key_value_heads=3))
source("remote code", "auto_map", config(model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model"}))
source("unknown family", "config.json", config(model_type="frobnicator"))
source("no weights", WEIGHTS, lambda folder: (folder / WEIGHTS).unlink())
source("pickled weights", "pytorch_model.bin", as_pickle)
source("cut weights", WEIGHTS, lambda folder: os.truncate(folder / WEIGHTS, 20_000))
source("huge header", WEIGHTS, lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**63)))
source("overlapping tensors", WEIGHTS, tensors(overlap))
source("missing tensor", "model.norm.weight", tensors(lambda header: header.update(other=header.pop("model.norm.weight"))))
source("index that leads out", "refers to '../../outside.safetensors', which is not the plain name", index)
source("tokenizer of nothing", "tokenizer.json: is not a tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{}"))
source_file("cut.gguf", "cut.gguf", b"GGUF\x03")
source_file("count.gguf", "count.gguf", gguf(2**62, 0))
source_file("fields.gguf", "fields.gguf", gguf(0, 2**63))
source_file("empty.gguf", "empty.gguf", b"")
source_file("model.pt", "model.pt: is a pickle", b"PK\x03\x04")
source_file("model.pt2", "model.pt2: is a pickle", b"PK\x03\x04")
source_file("model.safetensors", "holds weights and no configuration", b"")
source_file("model.xyz", "is not a model file", b"hello")

FINE: dict[str, Make] = {
    "a run": lambda world: Call(["run", str(world.artifact), "-p", "hi", "--max-tokens", "2"]),
    "NUL": lambda world: Call(["run", str(world.artifact), "--max-tokens", "2"], stdin=world.file("nul", b"a\0b")),
    "a chat": lambda world: Call(
        ["chat", str(world.artifact), "--max-tokens", "2"], stdin=world.file("lines", b"hi\n" + b"long" * 100 + b"\nhi\n")
    ),
    "stale": lambda world: Call(["compile", "nothing-like-it", "-o", "out"], folder=str(stale_folder(world))),
    **{
        f"debug {n}": lambda world, n=n: Call(["compile", str(world.model), "-o", "out"], environment={"CUPOLA_DEBUG": str(n)})
        for n in (2, 3)
    },
    **{number.name: lambda world, number=number: killed(world, number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)},
}


def killed(world: World, number: signal.Signals) -> Call:
    """A compile that gets a signal when it has imported the model."""
    words = ["compile", str(world.model), "-o", "out"]
    return Call(words, environment={"CUPOLA_DEBUG": "1"}, kill=int(number), when="Importing to Relax")


def stale_folder(world: World) -> Path:
    folder = world.folder / "stale"
    (folder / ".out.0123abcd.tmp").mkdir(parents=True)
    (folder / ".out.0123abcd.tmp" / "lib.so").write_text("half")
    return folder


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, Result]:
    calls = {name: make(world) for name, (make, _) in BAD.items()} | {name: make(world) for name, make in FINE.items()}
    return run_calls(calls, world.folder / "calls")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_code_2(results: dict[str, Result], name: str) -> None:
    assert BAD[name][1] in results[name].error
    assert results[name].out == ""
    assert results[name].names == []


def test_good_input_is_fine(results: dict[str, Result]) -> None:
    for name in ("a run", "NUL"):
        assert (results[name].code, results[name].err) == (0, "")
    assert results["a chat"].code == 0
    assert "However, your prompt has 404 tokens." in results["a chat"].err  # and the conversation goes on
    assert len(results["a chat"].out.splitlines()) == 3


def test_a_killed_compile_leaves_no_artifact(results: dict[str, Result]) -> None:
    assert (results["SIGINT"].code, results["SIGINT"].names) == (130, [])
    assert (results["SIGTERM"].code, results["SIGTERM"].names) == (143, [])
    (left,) = results["SIGKILL"].names
    assert results["SIGKILL"].code == -signal.SIGKILL and left.startswith(".out.") and left.endswith(".tmp")
    assert "nothing-like-it" in results["stale"].error
    assert results["stale"].names == []


def test_the_debugging_ladder(results: dict[str, Result], world: World) -> None:
    said = [results[name].err for name in ("SIGKILL", "debug 2", "debug 3")] + [world.said]
    assert all("cupola: Importing to Relax" in text for text in said)
    assert ["drop_batch" in text for text in said] == [False, True, True, True]
    assert ["dumps go to" in text for text in said] == [False, False, True, True]
    assert [(results[f"debug {n}"].code, results[f"debug {n}"].names) for n in (2, 3)] == [(0, ["out"]), (0, ["out", "out.ir"])]
    dumps = sorted(file.name for file in (world.folder / "tiny.ir").iterdir())
    assert dumps[0] == "00_drop_batch.py" and [name[3:] for name in dumps[-2:]] == ["kernels.s", "forward.c"]
    assert [int(name[:2]) for name in dumps] == list(range(len(dumps)))
    assert not (world.artifact / "ir").exists()


def test_a_failing_step_costs_others_nothing(world: World) -> None:
    import cupola

    llm = cupola.LLM(world.artifact, max_num_seqs=2, enable_prefix_caching=False)
    params = cupola.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    expected = llm.generate([[1, 2, 3]], params)[0].outputs[0].token_ids
    engine, executor = llm.engine, llm.engine.executor
    for name in ("a", "b"):
        engine.add_request(name, [1, 2, 3], params)
    found, submit = {}, executor.submit
    for step in range(100):
        if not engine.has_unfinished_requests():
            break
        if step == 4:
            engine.abort("b")
        executor.submit = submit if step % 3 else lambda *_: (_ for _ in ()).throw(MemoryError("no page left"))
        try:
            found.update({request.spec.request_id: request.sequences[0].output_token_ids for request in engine.step()})
        except cupola.EngineError as error:
            assert "no page left" in str(error)
    assert found["a"] == expected
    engine.check_idle()
