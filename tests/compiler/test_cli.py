"""The command line: exit codes, one clear line for bad input, JSON, streaming, the cache, the chat loop."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import cupola
from cupola.compiler import sources
from cupola.compiler.cli import cache
from cupola.compiler.cli.app import run
from cupola.compiler.options import QUANTS, CompileOptions, short_name
from cupola.runtime.artifact.folder import Artifact, sha256_of
from cupola.runtime.artifact.manifest import (
    CHAT_TEMPLATE,
    FORMAT_VERSION,
    LIBRARY,
    MANIFEST,
    PLAN,
    DeviceSpec,
    FileSpec,
    LibrarySpec,
    Limits,
    Manifest,
    ModelConfig,
    SourceSpec,
)
from cupola.runtime.artifact.plan import Place, Plan, PlanBuffer, PlanCall, PlanKernel
from cupola.runtime.artifact.state import KVGroup, KVSpec
from cupola.runtime.artifact.tensors import FunctionSpec, KernelSpec, TensorSpec, WeightSpec
from cupola.runtime.engine.outputs import EngineStats
from cupola.runtime.errors import EngineError, SourceError

Capture = pytest.CaptureFixture[str]
COMMANDS = ("compile", "run", "chat", "bench", "bench-serve", "eval", "inspect", "package", "check-kernels", "models", "targets")


def write_artifact(folder: Path, *, damaged: bool = False, template: bool = True) -> Artifact:
    """An artifact that has everything but a library that runs."""
    folder.mkdir(parents=True)
    (folder / LIBRARY).write_bytes(b"\x7fELF")
    (folder / PLAN).write_text("{}")
    (folder / "weights-00001.safetensors").write_bytes(bytes(264))
    if template:
        (folder / CHAT_TEMPLATE).write_text("{{ messages }}")
    files = tuple(FileSpec(file.name, file.stat().st_size, sha256_of(file)) for file in sorted(folder.iterdir()))
    shapes: dict[str, tuple[int | str, ...]] = {
        "tokens": ("n",), "positions": ("n",), "query_starts": ("b + 1",), "context_lens": ("b",), "logit_rows": ("r",),
        "slots.0": ("n",), "block_tables.0": ("b", "max_blocks_0"),
    }  # fmt: skip
    inputs = [TensorSpec(name, "int32", shape) for name, shape in shapes.items()]
    shape: tuple[int | str, ...] = (2, "num_blocks", 1, 8, 16)
    pools = TensorSpec("k_pages", "float32", shape), TensorSpec("v_pages", "float32", shape)
    kv = KVSpec((KVGroup((0, 1), 1, 8, 8, pools=pools),), "float32", 16)
    inputs += [*kv.pools("num_blocks"), TensorSpec("embed", "float32", (8, 8))]
    forward = FunctionSpec("forward", tuple(inputs), (TensorSpec("logits", "float32", ("r", 8)),), 100, 20)
    manifest = Manifest(
        FORMAT_VERSION, "0.1.0", "0.27.0", SourceSpec("tiny [1]", "huggingface", "0" * 64),
        (LibrarySpec(LIBRARY, PLAN, DeviceSpec("cpu:avx2", "cpu", "avx2", "x86_64", ("avx2",))),), "f32",
        ModelConfig("llama", 64, 8, (0,)), kv, Limits(4), (forward,),
        (WeightSpec("embed", "float32", (8, 8), "weights-00001.safetensors", 8, "4 bits"),), files,
        (KernelSpec("matmul"), KernelSpec("matmul")), (), ("not verified",),
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.to_json())
    if damaged:
        (folder / LIBRARY).unlink()
    return Artifact(folder, manifest)


class FakeLLM:
    """Answers with the words of the last message, and keeps what it was asked."""

    asked: list[object]
    made_from: list[Path]

    def __init__(
        self,
        artifact: str | Path,
        *,
        max_num_seqs: int,
        device: str | None,
        attention_sinks: int | None,
        attention_window: int | None,
        gpu_memory_utilization: float | None,
        speculative: str | None,
        memory_budget: str | None,
        max_tokens_per_second: float | None,
        num_threads: int | None,
        power_saver: bool,
    ) -> None:
        FakeLLM.made_from.append(Path(artifact))
        self.artifact = Artifact.open(artifact)
        self._stats = EngineStats(0, 0, 0.0, 0, 0, 0, num_drafts=4 if speculative else 0, num_draft_tokens=20, num_accepted_tokens=10)
        self.notes = (f"{attention_sinks} and {attention_window} are kept",) if attention_window else ()
        self.notes += (f"{max_tokens_per_second} a second by {num_threads} threads",) if power_saver else ()

    def memory_use(self) -> None:
        return None

    def stats(self) -> EngineStats:
        return self._stats

    def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1] * text.count("<")

    def stream(self, prompt: str, params: object) -> Iterator[str]:
        FakeLLM.asked.append(prompt)
        yield from ("raw:", prompt)

    def stream_chat(self, messages: Sequence[dict[str, str]], params: object) -> Iterator[str]:
        FakeLLM.asked.append([(m["role"], m["content"]) for m in messages])
        text = messages[-1]["content"]
        if text == "fail":
            raise EngineError("out of blocks")
        for word in text.split():
            if word == "stop":
                raise KeyboardInterrupt
            yield f"<{word}>"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeLLM]:
    FakeLLM.asked, FakeLLM.made_from = [], []
    monkeypatch.setitem(vars(cupola), "LLM", FakeLLM)
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "fingerprint", lambda name: f"fingerprint of {name}")
    return FakeLLM


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    return str(write_artifact(tmp_path / "artifact").path)


@pytest.fixture
def untemplated(tmp_path: Path) -> str:
    return str(write_artifact(tmp_path / "untemplated", template=False).path)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Compiles in the cache's child process, replaced by one that only writes a folder."""
    commands: list[list[str]] = []

    def child(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        write_artifact(Path(command[command.index("--out") + 1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    return commands


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `input()` give these lines; an exception is raised instead."""

    def prepare(*lines: str | type[BaseException]) -> None:
        waiting = iter([*lines, EOFError])

        def answer(prompt: str = "") -> str:
            line = next(waiting)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", answer)

    return prepare


def one_error_line(captured: str) -> str:
    lines = captured.splitlines()
    assert len(lines) == 1, captured
    assert lines[0].startswith("error: ")
    return lines[0]


# Help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    assert run([command, "--help"]) == 0
    assert f"cupola {command}" in capsys.readouterr().out


def test_without_a_command_it_shows_them_all(capsys: Capture) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"cupola {cupola.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "frobnicate"),
        (["compile"], "source"),
        (["compile", "x", "--quant", "q9"], f"quant: 'q9' is unknown (choose from {', '.join(QUANTS)})"),
        (["compile", "x", "--embedding", "q9"], "embedding: 'q9' is unknown (choose from auto, f32, bf16, f16, w8, w4)"),
        (["compile", "x", "--kv-dtype", "q9"], "kv-dtype: 'q9' is unknown (choose from f32, bf16, f16, int8, fp8)"),
        (["compile", "x", "--target", "abacus"], "target: 'abacus' is unknown (choose from cpu"),
        (["compile", "x", "--context", "-1"], "context: is -1"),
        (["compile", "x", "--context", "many"], "--context"),
        (["compile", "x", "--block-size", "17"], "block-size: is 17, not a power of two"),
        (["compile", "x", "--max-batch", "0"], "max-batch: is 0"),
        (["compile", "x", "--frobnicate"], "--frobnicate"),
        (["run", "x", "--temperature", "warm"], "--temperature"),
        (["run", "x", "--raw", "--system", "Be brief.", "-p", "hi"], "system: needs the chat template"),
        (["inspect", "missing"], "missing/manifest.json"),
        (["inspect"], "artifact"),
        (["chat", "x", "--quant", ""], "quant: '' is unknown"),
    ],
)
def test_bad_values_give_one_line_and_code_2(arguments: list[str], expected: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert expected in one_error_line(captured.err)
    assert captured.out == ""


def test_a_bad_debug_level_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("CUPOLA_DEBUG", "loud")
    assert run(["models"]) == 2
    assert "CUPOLA_DEBUG" in one_error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (SourceError("is truncated", file="model.gguf", fix="fetch it again"), 2, "error: model.gguf: is truncated (fetch it again)"),
        (SourceError("has a name\nof two lines"), 2, "error: has a name of two lines"),
        (EngineError("no memory for a block"), 1, "error: no memory for a block"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (ZeroDivisionError("oops"), 1, "error: ZeroDivisionError: oops (a bug in cupola; CUPOLA_DEBUG=1 shows where)"),
    ],
)
def test_what_a_compile_raises_becomes_a_line(
    error: Exception, code: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def compile(*values: object, **options: object) -> None:
        raise error

    monkeypatch.setitem(vars(cupola), "compile", compile)
    assert run(["compile", "x"]) == code
    assert one_error_line(capsys.readouterr().err) == expected


def test_debugging_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("CUPOLA_DEBUG", "1")
    monkeypatch.setitem(vars(cupola), "compile", lambda *values, **options: 1 // 0)
    assert run(["compile", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(*values: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(cupola), "compile", compile)
    assert run(["compile", "x"]) == 130


# compile


def test_compile_passes_its_options_on_and_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked: dict[str, object] = {}

    def compile(source: str, *, progress: object, **options: object) -> Artifact:
        asked.update(options, source=source)
        with progress.stage("tracing", 2) as advance:
            advance(2)
        return write_artifact(tmp_path / "out")

    monkeypatch.setitem(vars(cupola), "compile", compile)
    out = str(tmp_path / "out")
    assert (
        run(
            [
                "compile",
                "m.gguf",
                "-o",
                out,
                "--quant",
                "w4a8",
                "--embedding",
                "w4",
                "--context",
                "32",
                "--kv-dtype",
                "f16",
                "--max-batch",
                "3",
                "--json",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["artifact"], result["num_bytes"], result["notes"]) == (out, 284, ["not verified"])
    assert asked == {
        "source": "m.gguf", "target": "cpu", "quant": "w4a8", "embedding": "w4", "out": Path(out),
        "context": 32, "kv_dtype": "f16", "block_size": 16, "max_batch": 3, "os": None, "draft_vocabulary": None,
    }  # fmt: skip
    assert "tracing" in captured.err


@pytest.mark.parametrize(
    ("source", "name"),
    [("smollm2", "smollm2"), ("dir/My Model-1.5.gguf", "My-Model-1.5"), ("org/name-2.5", "name-2.5"), ("..", "model"), ("a;b", "a-b")],
)
def test_a_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert short_name(source) == name


# run


def test_run_streams_the_answer_through_the_chat_template(artifact: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["run", artifact, "-p", "two words", "--system", "Be brief.", "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "<two><words>\n"
    assert fake.asked == [[("system", "Be brief."), ("user", "two words")]]
    assert "2 tokens" in captured.err


@pytest.mark.parametrize("command", ["run", "chat"])
def test_stats_say_how_many_drafted_tokens_were_right(
    command: str, artifact: str, fake: type[FakeLLM], type_lines: Callable[..., None], capsys: Capture
) -> None:
    type_lines("hello")
    prompt = ["-p", "hello"] if command == "run" else []
    assert run([command, artifact, *prompt, "--speculative", "ngram", "--stats"]) == 0
    assert "; of 20 drafted tokens 50% were right, 3.5 tokens a step with drafts\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "chat", "serve", "bench"])
@pytest.mark.parametrize("value", ["ngrm", "draft:nowhere"])
def test_a_mistyped_proposer_is_refused_before_anything_is_compiled(command: str, value: str, tmp_path: Path, capsys: Capture) -> None:
    prompt = ["-p", "hello"] if command == "run" else []
    assert run([command, str(tmp_path / "source"), *prompt, "--speculative", value]) == 2
    error = capsys.readouterr().err
    assert f"speculative: is '{value}'" in error and ("ngram, suffix, lookahead, auto" in error) == (value == "ngrm")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_note_says_what_is_forgotten(
    command: str, artifact: str, fake: type[FakeLLM], type_lines: Callable[..., None], capsys: Capture
) -> None:
    type_lines("hello")
    prompt = ["-p", "hello"] if command == "run" else []
    assert run([command, artifact, *prompt, "--attention-sinks", "4", "--attention-window", "64"]) == 0
    output = capsys.readouterr()
    assert "<hello>" in output.out
    assert "note: 4 and 64 are kept\n" in output.err
    options = ["--max-tokens-per-second", "2.5", "--threads", "3", "--power-saver"]
    type_lines("hello")
    assert run([command, artifact, *prompt, *options]) == 0
    assert "note: 2.5 a second by 3 threads\n" in capsys.readouterr().err


def test_run_raw_or_without_a_template_continues_the_text(artifact: str, untemplated: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["run", artifact, "-p", "once", "--raw"]) == 0
    assert run(["run", untemplated, "-p", "upon"]) == 0
    assert capsys.readouterr().out == "raw:once\nraw:upon\n"


def test_run_reads_standard_input(artifact: str, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "question").write_text("from a pipe\n")
    with (tmp_path / "question").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run(["run", artifact]) == 0
    assert fake.asked == [[("user", "from a pipe")]]


def test_run_at_a_terminal_asks_for_a_prompt(artifact: str, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)}))
    assert run(["run", artifact]) == 2
    assert "--prompt" in one_error_line(capsys.readouterr().err)


def test_run_stopped_by_ctrl_c_is_code_130(artifact: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["run", artifact, "-p", "one stop two"]) == 130
    assert capsys.readouterr().out == "<one>\n"


def test_run_reports_an_engine_error(artifact: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["run", artifact, "-p", "fail"]) == 1
    assert one_error_line(capsys.readouterr().err) == "error: out of blocks"


def test_an_artifact_takes_no_compile_options(artifact: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["run", artifact, "-p", "hi", "--quant", "bf16"]) == 2
    assert "is compiled already" in one_error_line(capsys.readouterr().err)


# The cache


def test_a_source_is_compiled_once(fake: type[FakeLLM], compiled: list[list[str]], capsys: Capture) -> None:
    assert run(["run", "smollm2", "-p", "hi"]) == 0
    assert "Compiling smollm2" in capsys.readouterr().err
    assert run(["run", "smollm2", "-p", "hi"]) == 0
    assert "Compiling" not in capsys.readouterr().err
    assert len(compiled) == 1
    assert compiled[0][:5] == [sys.executable, "-P", "-m", "cupola", "compile"]
    assert fake.made_from[0] == fake.made_from[1]


def test_other_options_and_other_content_are_other_artifacts(fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {
        cache.artifact_folder("m", options) for options in (CompileOptions(), CompileOptions(quant="f16"), CompileOptions(context=8))
    }
    assert len(folders) == 3
    monkeypatch.setattr(sources, "fingerprint", lambda name: "changed")
    assert cache.artifact_folder("m", CompileOptions()) not in folders


def test_a_new_build_replaces_the_old_ones_artifact(
    fake: type[FakeLLM], compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cache.cached_artifact("m", CompileOptions())
    other = cache.cached_artifact("m", CompileOptions(quant="f16"))
    monkeypatch.setattr(cache, "build_id", lambda: "newer")
    new = cache.cached_artifact("m", CompileOptions())
    assert (new.exists(), old.exists(), other.exists()) == (True, False, True)


def test_a_damaged_artifact_is_compiled_again(fake: type[FakeLLM], compiled: list[list[str]]) -> None:
    write_artifact(cache.artifact_folder("m", CompileOptions()), damaged=True)
    assert Artifact.open(cache.cached_artifact("m", CompileOptions()))
    assert len(compiled) == 1


def test_a_cached_artifact_whose_content_changed_is_compiled_again(fake: type[FakeLLM], compiled: list[list[str]], capsys: Capture) -> None:
    folder = cache.cached_artifact("m", CompileOptions())
    (folder / LIBRARY).write_bytes(b"\x7fELG")
    assert run(["run", "m", "-p", "hi"]) == 0
    assert len(compiled) == 2
    shown = capsys.readouterr()
    assert shown.out == "<hi>\n"
    assert "The cached artifact is damaged: does not match its SHA-256" in shown.err


def test_a_failed_compile_passes_its_code_on(fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 2))
    assert run(["run", "m", "-p", "hi"]) == 2
    assert fake.made_from == []


def test_the_child_gets_the_options_and_no_source_can_pass_for_one(fake: type[FakeLLM], compiled: list[list[str]]) -> None:
    cache.cached_artifact("--json", CompileOptions(quant="bf16", context=32))
    assert compiled[0][-2:] == ["--", "--json"]
    assert "--quant bf16 --embedding auto --context 32 --block-size 16" in " ".join(compiled[0])


# chat


def test_chat_keeps_the_conversation(artifact: str, fake: type[FakeLLM], type_lines: Callable[..., None], capsys: Capture) -> None:
    type_lines("hello", "", "again")
    assert run(["chat", artifact, "--system", "S"]) == 0
    assert fake.asked[1] == [("system", "S"), ("user", "hello"), ("assistant", "<hello>"), ("user", "again")]
    assert capsys.readouterr().out == "<hello>\n<again>\n\n"


def test_chat_commands(artifact: str, fake: type[FakeLLM], type_lines: Callable[..., None], capsys: Capture) -> None:
    type_lines("one", "/reset", "two", "/help", "/frobnicate", "/exit", "never")
    assert run(["chat", artifact]) == 0
    assert fake.asked == [[("user", "one")], [("user", "two")]]
    shown = capsys.readouterr().err
    assert shown.count("/reset   forget") == 2
    assert "There is no /frobnicate." in shown


def test_chat_ctrl_c_stops_an_answer_and_not_the_chat(artifact: str, fake: type[FakeLLM], type_lines: Callable[..., None]) -> None:
    type_lines("one stop two", KeyboardInterrupt, "more")
    assert run(["chat", artifact]) == 0
    assert fake.asked[1] == [("user", "one stop two"), ("assistant", "<one>"), ("user", "more")]


def test_chat_needs_a_template(untemplated: str, fake: type[FakeLLM], capsys: Capture) -> None:
    assert run(["chat", untemplated]) == 2
    assert "has no chat template" in one_error_line(capsys.readouterr().err)


HOSTILE = "\x1b]52;c;cm0gLXJm\x07 \x9b2J \x7f\x00 a\rb é 👩\u200d🚀"
TAMED = "\\x1b]52;c;cm0gLXJm\\x07 \\x9b2J \\x7f\\x00 a\\rb é 👩\u200d🚀"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_control_characters_and_a_file_gets_all(
    artifact: str, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: Capture, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert run(["run", artifact, "--raw", "-p", f"{HOSTILE}\n\tx\r\ny"]) == 0
    shown = f"raw:{TAMED}\n\tx\ny\n" if is_terminal else f"raw:{HOSTILE}\n\tx\r\ny\n"
    assert capsys.readouterr().out == shown


def test_what_an_error_quotes_does_not_move_the_cursor(capsys: Capture) -> None:
    assert run(["run", "\x1b[2J\x9b/nowhere", "-p", "hi"]) == 2
    assert one_error_line(capsys.readouterr().err).isprintable()


# inspect and the lists


def test_inspect_json_reckons_memory(artifact: str, capsys: Capture) -> None:
    assert run(["inspect", artifact, "--json", "--context", "33", "--max-num-seqs", "2", "--max-num-batched-tokens", "10"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["weights"] == {"count": 1, "num_bytes": 256, "num_bytes_by_storage": {"4 bits": 256}}
    kv = 2 * 3 * 16 * (2 * 16 * 4)  # sequences × blocks × tokens × (layers × (key + value) × bytes)
    per_token, per_sequence = 3 * 4, (1 + 1 + 3) * 4  # tokens, positions, slots; a context length, a logit row, a block table
    given_and_taken = 10 * per_token + 2 * per_sequence + (2 + 1) * 4 + 2 * 8 * 4  # and query starts, and logits
    workspace = given_and_taken + 10 * 100 + 2 * 20  # what the manifest says of intermediate results
    assert shown["memory"] == {"weights": 256, "kv": kv, "workspace": workspace, "total": 256 + kv + workspace}
    assert shown["functions"][0]["name"] == "forward"


def test_inspect_shows_plans(artifact: str, capsys: Capture) -> None:
    kernel = PlanKernel("scale", (TensorSpec("x", "float32", ("m",)), TensorSpec("out", "float32", ("m",))), ("int64",), ("m",))
    places = [Place("input", 9), Place("buffer", 0), Place("constant", 0)]
    calls = (PlanCall("scale", (places[0], places[1]), (3,), (64,)), PlanCall("scale", (places[2], places[1]), (4,), (64,)))
    plan = Plan(
        1,
        ("n",),
        ("n * 256 + 16",),
        (TensorSpec("constant_0", "float32", (64,)),),
        (PlanBuffer("gv", "float32", (64,), 0, 16, 0, 1),),
        (kernel,),
        calls,
    )
    (Path(artifact) / PLAN).write_text(plan.to_json())
    manifest = Path(artifact) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"num_bytes": 2,', f'"num_bytes": {len(plan.to_json())},'))
    assert run(["inspect", artifact, "--plan"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "lib.so: 2 calls of 1 kernels; sizes n; ABI 1"
    assert {"0  n * 256 + 16 bytes", "gv: float32[64], 16 bytes in, calls 0 to 1", "constant_0: float32[64]"} < set(lines)
    assert {"0  scale(embed, gv, 3, 64)", "1  scale(constant_0, gv, 4, 64)"} < set(lines)
    assert run(["inspect", artifact, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lib.so"]["calls"][0]["numbers"] == [3]


def test_inspect_shows_what_is_inside(artifact: str, capsys: Capture) -> None:
    assert run(["inspect", artifact]) == 0
    shown = capsys.readouterr().out
    for part in ("tiny [1]", "llama", "tokens: int32[n]", "logits: float32[r, 8]", "matmul × 2", "not verified", "1 weights"):
        assert part in shown


@pytest.mark.parametrize("option", ["--context=65", "--context=0", "--max-num-seqs=5", "--max-num-batched-tokens=0"])
def test_inspect_refuses_what_the_artifact_cannot_do(artifact: str, option: str, capsys: Capture) -> None:
    assert run(["inspect", artifact, option]) == 2
    one_error_line(capsys.readouterr().err)


def test_models_lists_every_family(capsys: Capture) -> None:
    from cupola.models import FAMILIES

    assert run(["models", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["model_type"] for entry in shown["families"]] == [family.model_type for family in FAMILIES]
    assert "smollm2" in shown["builtin"]
    assert run(["models"]) == 0
    assert all(family.title in capsys.readouterr().out for family in FAMILIES[:1])


def test_targets_lists_the_cpu(capsys: Capture) -> None:
    assert run(["targets", "--json"]) == 0
    assert "cpu" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert run(["targets"]) == 0
    assert "RUNS HERE" in capsys.readouterr().out


# As a process


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cupola.compiler.cli.app import run; run(['--help']); print({'tvm', 'torch', 'transformers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


def test_a_broken_pipe_is_quiet() -> None:
    done = subprocess.run(f"{sys.executable} -m cupola --help | true", shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_server_that_ends_collects_no_garbage_first(tmp_path, monkeypatch):
    """Its libraries leave so much that it would take longer than everything else."""
    served = []
    monkeypatch.setattr(cupola, "serve", lambda folder, **_options: served.append(folder))
    before = gc.get_freeze_count()
    try:
        assert run(["serve", str(write_artifact(tmp_path / "model").path)]) == 0
        assert served and gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
