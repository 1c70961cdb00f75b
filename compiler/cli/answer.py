"""What `run` and `chat` share: a model made ready, and an answer shown while it is generated."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cupola
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.cache import cached_artifact
from cupola.compiler.options import CompileOptions

if TYPE_CHECKING:
    from cupola import LLM, SamplingParams


@dataclass(frozen=True)
class Answer:
    """An answer as it was shown, perhaps cut short, and the figures of `--stats`."""

    text: str
    num_pieces: int
    first_seconds: float
    seconds: float

    def speed(self) -> str:
        """The figures in a line. A piece is a token, or the few that make up one character."""
        per_second = (self.num_pieces - 1) / (self.seconds - self.first_seconds) if self.num_pieces > 1 else 0.0
        return f"first after {self.first_seconds:.2f} s; {self.num_pieces} pieces in {self.seconds:.2f} s, {per_second:.1f} a second"


def load(model: str, options: CompileOptions) -> LLM:
    """The model, compiled first if it is a source that the cache has no artifact of."""
    if p.is_artifact(model):
        p.refuse_compile_options(model, options)
        return cupola.LLM(Path(model))
    return cupola.LLM(cached_artifact(model, options))


def show(pieces: Iterator[str], *, stoppable: bool = False) -> Answer:
    """Writes the pieces to standard output as they come; with `stoppable`, Ctrl-C ends the answer and not the program."""
    shown: list[str] = []
    start = first = time.perf_counter()
    try:
        for piece in pieces:
            first = first if shown else time.perf_counter()
            shown.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not stoppable:
            raise
    finally:
        if shown:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return Answer("".join(shown), len(shown), first - start, time.perf_counter() - start)


def messages(system: str | None, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The conversation in the form that chat templates take: `turns` are (role, text)."""
    begin = [("system", system)] if system else []
    return [{"role": role, "content": text} for role, text in (*begin, *turns)]


def sampling_params(max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None) -> SamplingParams:
    """The options as the API takes them. Raises RequestError."""
    return cupola.SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
