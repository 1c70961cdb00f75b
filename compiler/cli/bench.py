"""`cupola bench`: tokens a second, in llama-bench's terms."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cupola
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.answer import load_by
from cupola.compiler.cli.bench_kernels import show_kernels, unlike
from cupola.compiler.cli.bench_speculative import show_speculation
from cupola.compiler.cli.lists import table
from cupola.compiler.cli.progress import console_progress
from cupola.compiler.options import short_name
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.environment import num_threads
from cupola.runtime.errors import OptionError

if TYPE_CHECKING:
    from cupola import Benchmark, SpeedTest

MAX_TOKENS, MAX_REPEATS = 1 << 24, 10_000


def _list_option(flag: str, name: str, help: str) -> Any:
    return typer.Option(f"--{name}", flag, help=help, metavar="N,N,…")


Prompt = Annotated[list[str], _list_option("-p", "prompt", "pp: compute a prompt of N tokens; 0 leaves these tests out.")]
Generate = Annotated[list[str], _list_option("-n", "generate", "tg: generate N tokens, one at a time; 0 leaves these tests out.")]
Depth = Annotated[list[str], _list_option("-d", "depth", "Do so after N tokens of context.")]
Streams = Annotated[
    list[str] | None,
    _list_option("-b", "batch", "tg: let N streams generate together; tokens a second are those of all. (default: 1; with --kernels 1,16)"),
]
Kernels = Annotated[
    bool,
    typer.Option(
        "--kernels", help="Show where the time goes: each kernel's time, and how near it comes to what the machine can do at best."
    ),
]
Answers = Annotated[
    str,
    typer.Option(
        help="With --speculative: kinds of answers, by how their names begin: edits,quotes,JSON,free. (default: all)", metavar="KIND,…"
    ),
]
Repeats = Annotated[int, typer.Option("--repeat", "-r", help="Measure each test this many times.")]


@dataclass(frozen=True)
class Speed:
    """The samples of one test, in tokens a second."""

    test: SpeedTest
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Tokens a second on average."""
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """The samples' standard deviation; 0 for one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def bench(
    model: p.Model,
    prompt: Prompt = ["512"],  # noqa: B006 - typer copies it
    generate: Generate = ["128"],  # noqa: B006
    depth: Depth = ["0"],  # noqa: B006
    batch: Streams = None,
    repeat: Repeats = 5,
    kernels: Kernels = False,
    speculative: p.Speculative = None,
    answers: Answers = "",
    device: p.Device = None,
    gpu_memory_utilization: p.GPUMemory = None,
    as_json: p.Json = False,
    target: p.Target = None,
    quant: p.Quant = None,
    embedding: p.Embedding = None,
    kv_dtype: p.KVDtype = None,
    context: p.Context = None,
    block_size: p.BlockSize = None,
    max_batch: p.MaxBatch = None,
) -> None:
    """Measure a model's speed, in llama-bench's terms: mean ± standard deviation of tokens a second.

    pp512 computes a prompt of 512 tokens (in steps of up to 512), tg128 generates 128 tokens one after the other, and
    "@ d4096" is either after 4096 tokens of context. Whole steps are timed: the model, scheduling and the choice of tokens;
    tokenizing is not. Each test is run once before it is measured. Lists make a test of every combination; what
    exceeds the artifact's context or batch is left out, with a note.

    With --kernels it first measures how fast the machine reads memory and multiplies. Then a line for each kernel of a prompt,
    and of a decode step: its calls, microseconds at the fastest, share of the step, the bytes and operations that it can't do
    without, and its share of the roofline: the least time that those take on this machine, divided by its own. Figures add up on a
    machine that does nothing else meanwhile.

    With --speculative it measures answers to real prompts of four kinds, with drafts and without: of -n tokens, -b of them together.

    Examples: cupola bench my-model -p 512 -n 128 -d 0,512,4096 -b 1,8,16, or cupola bench my-model --kernels -d 512
    """
    options = p.compile_options(target, quant, embedding, kv_dtype, context, block_size, max_batch)
    streams = batch or ["1,16" if kernels else "1"]
    tests = plan(*(_numbers(*item) for item in (("prompt", prompt), ("generate", generate), ("depth", depth), ("batch", streams))))
    if not 1 <= repeat <= MAX_REPEATS:
        raise OptionError(f"is {repeat}, not from 1 to {MAX_REPEATS}", field="repeat", fix="give one in that range")
    cupola.check_speculative(speculative)

    artifact = load_by(lambda folder: cupola.Artifact.open(folder), model, options)
    if speculative is not None:
        kinds = [kind.strip() for kind in answers.split(",")] if answers else []
        return typer.echo("\n\n".join(_speculations(artifact, speculative, tests, kinds, repeat, as_json)))
    fitting = _fitting(artifact, tests)
    benchmark = cupola.Benchmark(artifact, fitting, device, gpu_memory_utilization)
    if kernels:
        return typer.echo(show_kernels(benchmark, unlike(fitting), repeat, as_json))
    speeds = measure(benchmark, fitting, repeat)
    typer.echo(json.dumps(as_dict(artifact, device, speeds)) if as_json else table(*rows(artifact, device, speeds)))


def _speculations(
    artifact: Artifact, speculative: str, tests: Sequence[SpeedTest], kinds: Sequence[str], repeats: int, as_json: bool
) -> Iterator[str]:
    """A table for each number of tokens and of streams."""
    for num_tokens, streams in dict.fromkeys((test.num_tokens, test.num_streams) for test in tests if test.kind == "tg"):
        yield show_speculation(artifact, speculative, repeats, as_json, num_tokens, streams, kinds)


def plan(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int], streams: Sequence[int]) -> list[SpeedTest]:
    """A test for every combination; prompts are computed by one stream. Raises OptionError if none is left."""
    tests = [
        *(cupola.SpeedTest("pp", num_tokens, depth) for depth in depths for num_tokens in prompts if num_tokens),
        *(cupola.SpeedTest("tg", num_tokens, depth, b) for depth in depths for b in streams for num_tokens in generated if num_tokens),
    ]
    if not tests:
        raise OptionError("both are 0", field="prompt, generate", fix="give one of them some tokens")
    return tests


def measure(benchmark: Benchmark, tests: Sequence[SpeedTest], repeats: int) -> list[Speed]:
    """Runs the tests, one after the other, showing progress."""
    progress, speeds = console_progress(), []
    for test in tests:
        with progress.stage(test.name, repeats + 1) as advance:
            benchmark.warm_up(test)
            advance(1)
            samples = []
            for _ in range(repeats):
                samples.append(benchmark.tokens_per_second(test))
                advance(1)
        speeds.append(Speed(test, tuple(samples)))
    return speeds


def rows(artifact: Artifact, device: str | None, speeds: Sequence[Speed]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table like llama-bench's."""
    shared = _facts(artifact, device)
    return [*shared, "test", "t/s"], [[*map(str, shared.values()), s.test.name, f"{s.mean:.2f} ± {s.deviation:.2f}"] for s in speeds]


def as_dict(artifact: Artifact, device: str | None, speeds: Sequence[Speed]) -> dict[str, object]:
    """Everything, for programs; `size` in bytes, `tokens_per_second` of every repeat."""
    manifest = artifact.manifest
    tests = [
        {"test": s.test.name, **asdict(s.test), "mean": s.mean, "standard_deviation": s.deviation, "tokens_per_second": list(s.samples)}
        for s in speeds
    ]
    facts = {**_facts(artifact, device), "size": _weight_bytes(artifact)}
    return {"artifact": str(artifact.path), **facts, "cupola": manifest.cupola_version, "tvm": manifest.tvm_version, "tests": tests}


def _facts(artifact: Artifact, device: str | None) -> dict[str, object]:
    manifest = artifact.manifest
    return {
        "model": short_name(manifest.source.name),
        "size": f"{_weight_bytes(artifact) / 2**20:.2f} MiB",
        "scheme": manifest.scheme,
        "K/V": manifest.kv.dtype,
        "target": cupola.choose_library(artifact, device).target.name,
        "threads": num_threads(),
    }


def _weight_bytes(artifact: Artifact) -> int:
    return sum(file.num_bytes for file in artifact.manifest.files if file.name.endswith(".safetensors"))


def _numbers(field: str, values: Sequence[str]) -> list[int]:
    """The numbers of a list option, which may be given more than once; "8" and "1,8,16" are fine."""
    lowest = 1 if field == "batch" else 0
    texts = [text.strip() for value in values for text in value.split(",")]
    for text in texts:
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and lowest <= int(text) <= MAX_TOKENS):
            problem = f"{text!r:.60} is not a whole number from {lowest} to {MAX_TOKENS}"
            raise OptionError(problem, field=field, fix="give numbers with commas between, such as 1,8,16")
    return list(dict.fromkeys(map(int, texts)))


def _fitting(artifact: Artifact, tests: Sequence[SpeedTest]) -> list[SpeedTest]:
    """The tests that the artifact can run; says which it leaves out, and raises OptionError if that is all."""
    problems = {test: test.exceeds(artifact.manifest) for test in tests}
    fitting = [test for test, problem in problems.items() if problem is None]
    if not fitting:
        test, problem = next(iter(problems.items()))
        raise OptionError(
            str(problem), file=artifact.path, field=test.name, fix="give smaller numbers, or compile the model with larger ones"
        )
    for test, problem in problems.items():
        if problem is not None:
            print(f"note: {test.name} is left out: it {problem}", file=sys.stderr)
    return fitting
