"""Measures what a server's users notice, over its real HTTP API.

    python benchmarks/serving latency ARTIFACT [--bounds 128,512]     a long prompt arrives among streams
    python benchmarks/serving chat ARTIFACT                           the second turn of a long chat
    python benchmarks/serving overhead ARTIFACT                       an engine alone, and behind the server

Time on a machine that does nothing else.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from chat import measure_chat
from latency import measure_latency
from overhead import measure_alone, measure_served
from server import serving

import cupola

Artifact = Annotated[Path, typer.Argument(help="An artifact's folder.")]
Rounds = Annotated[int, typer.Option(min=1, help="Times to measure each.")]
Seed = Annotated[int, typer.Option(help="Of the prompts.")]
DEFAULT, WHOLE = "as it is by default", "prompts in one piece"
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def latency(
    artifact: Artifact,
    rounds: Rounds = 5,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are under way.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that arrives.")] = 2000,
    bounds: Annotated[str, typer.Option(help="Further values of --max-num-mixed-prefill-tokens, separated by commas.")] = "",
    seed: Seed = 0,
) -> None:
    """How long streams wait for a token while a long prompt is computed, with it in chunks and in one piece, in turns."""
    settings: dict[str, Sequence[str]] = {DEFAULT: ()}
    for bound in filter(None, bounds.split(",")):
        settings[f"at most {bound} beside decodes"] = ("--max-num-batched-tokens", str(max(512, int(bound))), *_mixed(bound))
    settings[WHOLE] = ("--max-num-batched-tokens", str(tokens + streams), *_mixed(str(tokens)))
    randomness = random.Random(seed)
    with failures(), ExitStack() as stack:
        servers = {name: stack.enter_context(serving(artifact, options)) for name, options in settings.items()}
        for server in servers.values():
            measure_latency(server, streams, tokens, randomness)  # whose times are those of a first time
        found = [{name: measure_latency(server, streams, tokens, randomness) for name, server in servers.items()} for _ in range(rounds)]
    typer.echo(f"{streams} streams decode, and a prompt of {tokens} tokens arrives; median (least to most) of {rounds} rounds, in turns")
    columns = ("worst gap before, ms", "worst gap, ms", "prompt's first token, ms", "to gap in one piece")
    typer.echo(" " * 28 + "".join(f"{column:>26s}" for column in columns))
    for name in settings:
        before, gaps, ttfts = zip(*((r[name].plain_gap, r[name].worst_gap, r[name].prompt_ttft) for r in found), strict=True)
        ratios = [r[name].worst_gap / r[WHOLE].worst_gap for r in found]
        figures = (*map(_milliseconds, (before, gaps, ttfts)), _spread(ratios, ".2f"))
        typer.echo(f"{name:28s}" + "".join(f"{figure:>26s}" for figure in figures))


@app.command()
def chat(
    artifact: Artifact,
    rounds: Rounds = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the first turn, about.")] = 1500,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    seed: Seed = 0,
) -> None:
    """How long a chat's first and second turn take to their first text."""
    randomness = random.Random(seed)
    with failures(), serving(artifact, ()) as server:
        measure_chat(server, tokens, answer_tokens, randomness)  # whose times are those of a first time
        found = [measure_chat(server, tokens, answer_tokens, randomness) for _ in range(rounds)]
    last = found[-1]
    typer.echo(f"until the first text; median (least to most) of {rounds} chats")
    typer.echo(f"first turn, {last.num_first_tokens} tokens: {_milliseconds([turns.first_ttft for turns in found])} ms")
    about = f"second turn, {last.num_second_tokens} tokens, {last.num_cached_tokens} of them from the cache"
    typer.echo(f"{about}: {_milliseconds([turns.second_ttft for turns in found])} ms")
    typer.echo(f"second to first: {_spread([turns.second_ttft / turns.first_ttft for turns in found], '.2f')}")


@app.command()
def overhead(
    artifact: Artifact,
    rounds: Rounds = 5,
    streams: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    seed: Seed = 0,
) -> None:
    """Output tokens a second of an engine alone and behind the server, with streaming clients, in turns."""
    randomness = random.Random(seed)
    lengths = (streams, input_len, output_len, randomness)
    with failures(), serving(artifact, ("--max-num-seqs", str(streams))) as server:
        llm = cupola.LLM(artifact, max_num_seqs=streams)
        measure_alone(llm, *lengths), measure_served(server, *lengths)  # whose times are those of a first time
        found = [(measure_alone(llm, *lengths), measure_served(server, *lengths)) for _ in range(rounds)]
    typer.echo(f"{streams} streams of {input_len} tokens in and {output_len} out; median (least to most) of {rounds} rounds, in turns")
    for name, figures in zip(("engine alone", "behind the server"), zip(*found, strict=True), strict=True):
        typer.echo(f"{name:18s} {_spread(figures, '.0f')} tokens a second")
    typer.echo(f"served to alone    {_spread([served / alone for alone, served in found], '.3f')}")


def _mixed(bound: str) -> tuple[str, str]:
    return "--max-num-mixed-prefill-tokens", bound


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _milliseconds(seconds: Sequence[float]) -> str:
    return _spread([1e3 * value for value in seconds], ".1f")


@contextmanager
def failures() -> Iterator[None]:
    """Says in a line what went wrong."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
