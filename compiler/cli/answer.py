"""Parts that `run` and `chat` share: loading a model, and showing an answer while it is generated."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cupola
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.cache import cached_artifact
from cupola.compiler.options import CompileOptions
from cupola.runtime.artifact.manifest import CHAT_TEMPLATE
from cupola.runtime.errors import ArtifactError, OptionError

if TYPE_CHECKING:
    from cupola import LLM, SamplingParams

Loaded = TypeVar("Loaded")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Answer:
    """An answer as it was shown, perhaps cut short; seconds count from the moment it was asked for."""

    text: str
    first_seconds: float
    seconds: float

    def speed(self, llm: LLM) -> str:
        """The line of `--stats`; tokens a second are those after the first. Of drafts it counts all since the start."""
        num_tokens = len(llm.tokenize(self.text, add_special_tokens=False)) if self.text else 0
        per_second = (num_tokens - 1) / (self.seconds - self.first_seconds) if num_tokens > 1 else 0.0
        line = f"first token after {self.first_seconds:.2f} s; {num_tokens} tokens in {self.seconds:.2f} s, {per_second:.1f} a second"
        if memory := llm.memory_use():
            line += f"; {memory}"
        stats = llm.stats()
        if not stats.num_drafts:
            return line
        right, a_draft = stats.num_accepted_tokens / stats.num_draft_tokens, 1 + stats.num_accepted_tokens / stats.num_drafts
        return f"{line}; of {stats.num_draft_tokens} drafted tokens {right:.0%} were right, {a_draft:.1f} tokens a step with drafts"


@dataclass(frozen=True)
class Effort:
    """How hard the machine works, as `LLM` has it."""

    max_tokens_per_second: float | None = None
    num_threads: int | None = None
    power_saver: bool = False


def load(
    model: str,
    options: CompileOptions,
    device: str | None = None,
    attention_sinks: int | None = None,
    attention_window: int | None = None,
    gpu_memory_utilization: float | None = None,
    speculative: str | None = None,
    memory_budget: str | None = None,
    effort: Effort | None = None,
) -> LLM:
    """The model, for one sequence."""
    cupola.check_speculative(speculative)
    effort = effort or Effort()

    def make(folder: Path | str) -> LLM:
        return cupola.LLM(
            folder, max_num_seqs=1, device=device, attention_sinks=attention_sinks, attention_window=attention_window,
            gpu_memory_utilization=gpu_memory_utilization, speculative=speculative, memory_budget=memory_budget,
            max_tokens_per_second=effort.max_tokens_per_second, num_threads=effort.num_threads, power_saver=effort.power_saver,
        )  # fmt: skip

    llm = load_by(make, model, options)
    for note in llm.notes:
        print(f"note: {note}", file=sys.stderr)
    return llm


def load_by(make: Callable[[Path | str], Loaded], model: str, options: CompileOptions) -> Loaded:
    """Calls `make` on the model's artifact, compiled first if `model` is a source without a cached artifact."""
    if p.is_artifact(model):
        p.refuse_compile_options(model, options)
        return make(model)
    folder = cached_artifact(model, options)
    try:
        return make(folder)
    except ArtifactError as error:
        print(f"The cached artifact is damaged: {error.message}.", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return make(cached_artifact(model, options))


def has_chat_template(llm: LLM) -> bool:
    """True if the model came with a chat template."""
    return any(file.name == CHAT_TEMPLATE for file in llm.artifact.manifest.files)


def show(pieces: Iterator[str], *, stoppable: bool = False) -> Answer:
    """Writes the pieces to standard output as they come; with `stoppable`, Ctrl-C ends the answer and not the program.

    A terminal gets no control characters but newlines and tabs: a model may say what would move its cursor or fill its clipboard.
    """
    if sys.stdout is None:
        raise OptionError("is closed", file="standard output", fix="give the answer somewhere to go")
    shown: list[str] = []
    tame = _tame if sys.stdout.isatty() else str
    start = first = time.perf_counter()
    try:
        for piece in pieces:
            first = first if shown else time.perf_counter()
            shown.append(piece)
            sys.stdout.write(tame(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not stoppable:
            raise
    finally:
        if shown:
            sys.stdout.write("\n")
            sys.stdout.flush()
    return Answer("".join(shown), first - start, time.perf_counter() - start)


def _tame(text: str) -> str:
    """`text` with control characters written as Python writes them. Others that have no width stay: emoji and Persian need them."""
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text.replace("\r\n", "\n"))


def messages(system: str | None, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The conversation in the form that chat templates take: `turns` are (role, text)."""
    begin = [("system", system)] if system else []
    return [{"role": role, "content": text} for role, text in (*begin, *turns)]


def sampling_params(max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None) -> SamplingParams:
    """The options as the API takes them. Raises RequestError."""
    return cupola.SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
