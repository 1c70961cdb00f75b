"""The options that several commands take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cupola.compiler.cli.declare import Argument, Option
from cupola.compiler.options import EMBEDDINGS, KV_DTYPES, QUANTS, CompileOptions
from cupola.runtime.artifact.manifest import LIBRARY, MANIFEST
from cupola.runtime.errors import OptionError
from cupola.targets.native.systems import SYSTEMS

DEFAULTS = CompileOptions()
COMPILING = "How to compile"  # the group of options that an artifact has no use for


def _compile_option(flag: str, help: str) -> Any:
    return Option(flag, help=help, rich_help_panel=COMPILING, show_default=False)


def _choices(values: tuple[str, ...], default: str) -> str:
    return f"{', '.join(values)} (default: {default})"


Source = Annotated[
    str, Argument(help="A Hugging Face folder, a GGUF file, a hub id, or a built-in name such as smollm2.", show_default=False)
]
Model = Annotated[str, Argument(help="An artifact's folder; or a source, which is compiled first, once.", show_default=False)]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs.")]

Target = Annotated[
    str | None,
    _compile_option(
        "--target", "What to compile for: cpu (default) is this machine, `cupola targets` lists others; commas between several."
    ),
]
OperatingSystem = Annotated[
    str | None,
    _compile_option(
        "--os",
        f"The operating system to compile for: {', '.join(SYSTEMS)} (default: this machine's); commas between several. A target may name "
        "its own, as in TARGET@android.",
    ),
]
Quant = Annotated[str | None, _compile_option("--quant", f"How weights are stored: {_choices(QUANTS, DEFAULTS.quant)}.")]
Embedding = Annotated[
    str | None,
    _compile_option(
        "--embedding", f"How the embedding and the vocabulary projection are stored: {_choices(EMBEDDINGS, DEFAULTS.embedding)}."
    ),
]
KVDtype = Annotated[str | None, _compile_option("--kv-dtype", f"How K and V are stored: {', '.join(KV_DTYPES)}.")]
Context = Annotated[int | None, _compile_option("--context", "Tokens that a sequence may have (default: the model's own limit).")]
BlockSize = Annotated[int | None, _compile_option("--block-size", f"Tokens in a block of the K/V cache (default: {DEFAULTS.block_size}).")]
MaxBatch = Annotated[int | None, _compile_option("--max-batch", f"Sequences that one step may hold (default: {DEFAULTS.max_batch}).")]
DraftVocabulary = Annotated[
    int | None,
    _compile_option(
        "--draft-vocabulary",
        "Make a draft model for --speculative draft:FOLDER that says the first N tokens alone, which is faster (a quarter of them, say).",
    ),
]

AttentionSinks = Annotated[
    int | None,
    Option("--attention-sinks", help="Go on past the context: keep so many first tokens, and --attention-window.", show_default=False),
]
AttentionWindow = Annotated[
    int | None, Option("--attention-window", help="With --attention-sinks: keep so many of the latest tokens.", show_default=False)
]
Speculative = Annotated[
    str | None,
    Option(
        "--speculative",
        help="Guess tokens, for the model to look at several in a step; answers stay the same: ngram, suffix, auto (both), lookahead, "
        "draft:FOLDER (a small model's artifact) or early-exit:K (the model's first K layers).",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, Option("--device", help="The device to run on, of those compiled for (default: the best).", show_default=False)
]
GPUMemory = Annotated[
    float | None,
    Option(
        "--gpu-memory-utilization",
        help="Of a GPU's memory, the share for weights, K and V, and a step's workspace (default: 0.9).",
        show_default=False,
    ),
]
MemoryBudget = Annotated[
    str | None,
    Option(
        "--memory-budget",
        help="Physical memory that the process with the model may come to have, such as 700MB: steps, context and K/V are made to fit.",
        show_default=False,
    ),
]
MaxTokensPerSecond = Annotated[
    float | None,
    Option(
        "--max-tokens-per-second",
        help="A pace for tokens, of all answers together: between steps the engine sleeps, and the machine stays cool.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    Option("--threads", help="Threads on the CPU (default: the cores that may be kept busy, of unlike ones the fast).", show_default=False),
]
PowerSaver = Annotated[
    bool, Option("--power-saver", help="Let the CPU's threads sleep while they wait for each other: slower, easier on batteries.")
]
System = Annotated[str | None, Option("--system", help="A system message to begin with.", show_default=False)]
MaxTokens = Annotated[int, Option("--max-tokens", help="Tokens to generate at most.")]
Temperature = Annotated[float, Option("--temperature", help="0 takes the most likely token; higher is more varied.")]
TopK = Annotated[int, Option("--top-k", help="Sample from the K most likely tokens; 0 is all.")]
TopP = Annotated[float, Option("--top-p", help="Sample from the most likely tokens that hold P of the probability.")]
MinP = Annotated[float, Option("--min-p", help="Drop tokens less likely than P times the most likely.")]
Seed = Annotated[int | None, Option("--seed", help="For the same sample again.", show_default=False)]
Stats = Annotated[bool, Option("--stats", help="Say how fast it was, on standard error, and with --memory-budget how much memory it took.")]


def flowing(command: Callable[..., object]) -> str:
    """A command's docstring as help: lines of a paragraph flow together, whatever the terminal's width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (inspect.getdoc(command) or "").split("\n\n"))


def compile_options(
    target: str | None,
    quant: str | None,
    embedding: str | None,
    kv_dtype: str | None,
    context: int | None,
    block_size: int | None,
    max_batch: int | None,
    os: str | None = None,
    draft_vocabulary: int | None = None,
) -> CompileOptions:
    """The options, with defaults for what was not given. Raises OptionError."""
    return CompileOptions(
        target=DEFAULTS.target if target is None else target,
        quant=DEFAULTS.quant if quant is None else quant,
        embedding=DEFAULTS.embedding if embedding is None else embedding,
        kv_dtype=kv_dtype,
        context=context,
        block_size=DEFAULTS.block_size if block_size is None else block_size,
        max_batch=DEFAULTS.max_batch if max_batch is None else max_batch,
        os=os,
        draft_vocabulary=draft_vocabulary,
    )


def is_artifact(model: str) -> bool:
    """True if `model` is an artifact's folder, perhaps a damaged one, and not a source."""
    try:
        return any((Path(model) / name).exists() for name in (MANIFEST, LIBRARY))
    except OSError:  # too long for a path
        return False


def refuse_compile_options(model: str, options: CompileOptions) -> None:
    """Raises OptionError if an artifact, which is compiled already, is given with options that ask for another."""
    if options != DEFAULTS:
        raise OptionError("is compiled already", file=model, fix="leave the compile options out, or name its source instead")
