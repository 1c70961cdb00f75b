"""`cupola eval`: how well a model predicts a text, alone and beside another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cupola
from cupola.compiler.cli import answer
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.progress import console_progress
from cupola.runtime.errors import OptionError

if TYPE_CHECKING:
    from cupola import Estimate, Evaluation

MAX_TEXT_BYTES = 64 << 20
Text = Annotated[Path, typer.Option("--text", "-f", help="The text to score: a UTF-8 file.", show_default=False)]
WindowTokens = Annotated[
    int | None, typer.Option("--context", "-c", help="Tokens in a window (default: 512, or the model's limit).", show_default=False)
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Let windows overlap: each moves on by N tokens and scores the new ones, as transformers' documentation has it. Without it "
        "windows stand side by side and the second half of each is scored, as llama.cpp's perplexity does.",
        metavar="N",
        show_default=False,
    ),
]
Windows = Annotated[int | None, typer.Option("--max-windows", help="Stop after N windows.", metavar="N", show_default=False)]
Reference = Annotated[
    str | None,
    typer.Option(
        help="Another artifact of the same model, such as the one in f32: also show the ratio of the perplexities, the mean KL "
        "divergence from its predictions, and how often both find the same token the most likely.",
        show_default=False,
    ),
]


def eval_model(
    model: p.Model,
    text: Text,
    context: WindowTokens = None,
    stride: Stride = None,
    max_windows: Windows = None,
    reference: Reference = None,
    device: p.Device = None,
    as_json: p.Json = False,
    target: p.Target = None,
    quant: p.Quant = None,
    embedding: p.Embedding = None,
    kv_dtype: p.KVDtype = None,
) -> None:
    """Measure a model's quality: its perplexity on a text, and how far it is from a reference.

    Perplexity is how many tokens the model hesitates between: lower is better, and only figures of the same text,
    tokenizer, window and stride compare. What comes after ± is the standard error that the text's length leaves; that of
    the ratio is much smaller, since both models score the same tokens.

    Example: cupola eval my-model-bf16 --text article.txt --reference my-model-f32
    """
    content = read_text(text)
    llm = answer.load(model, p.compile_options(target, quant, embedding, kv_dtype, None, None, None), device)
    other = None if reference is None else answer.load(reference, p.DEFAULTS)
    with console_progress().stage("Scoring", total=100) as advance:
        result = cupola.evaluate(
            llm,
            content,
            context=context,
            stride=stride,
            max_windows=max_windows,
            reference=other,
            on_window=lambda done, windows: advance(100 * done // windows - 100 * (done - 1) // windows),
        )
    typer.echo(json.dumps({"artifact": str(llm.artifact.path), **asdict(result)}) if as_json else describe(result))


def read_text(file: Path) -> str:
    """The content of a text file. Raises OptionError."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise OptionError(f"can't be read: {error.strerror}", file=file, field="text", fix="name a text file") from None
    if len(data) > MAX_TEXT_BYTES:
        raise OptionError(f"has more than {MAX_TEXT_BYTES >> 20} MiB", file=file, field="text", fix="give a part of it")
    if not data.strip():
        raise OptionError("is empty", file=file, field="text", fix="give a file with some text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"is not UTF-8 at byte {error.start}", file=file, field="text", fix="give a UTF-8 text") from None


def describe(result: Evaluation) -> str:
    """The figures for people."""
    how = "second halves scored" if result.stride is None else f"moved by {result.stride}"
    lines = [
        f"perplexity     {_show(result.perplexity)}",
        f"tokens         {result.num_scored_tokens} scored of {result.num_tokens}, "
        f"in {result.num_windows} windows of {result.context}, {how}",
    ]
    if (found := result.comparison) is not None:
        lines += [
            f"reference      {_show(found.perplexity)}",
            f"ratio          {_show(found.perplexity_ratio, 5)}",
            f"KL divergence  {_show(found.kl_divergence, 5)} nats a token",
            f"same top       {100 * found.same_top.value:.2f} ± {100 * found.same_top.standard_error:.2f} %",
        ]
    return "\n".join(lines)


def _show(estimate: Estimate, digits: int = 4) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.standard_error:.{digits}f}"
