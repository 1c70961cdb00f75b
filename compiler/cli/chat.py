"""`cupola chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from cupola.compiler.cli import answer
from cupola.compiler.cli import parameters as p
from cupola.runtime.errors import OptionError, RequestError, one_line

if TYPE_CHECKING:
    from cupola import LLM, SamplingParams

HELP = """\
/reset   forget the conversation
/exit    leave (Ctrl-D does too)
/help    show this
Ctrl-C stops an answer; what was said so far stays in the conversation."""


def chat(
    model: p.Model,
    system: p.System = None,
    max_tokens: p.MaxTokens = 512,
    temperature: p.Temperature = 0.0,
    top_k: p.TopK = 0,
    top_p: p.TopP = 1.0,
    min_p: p.MinP = 0.0,
    seed: p.Seed = None,
    stats: p.Stats = False,
    attention_sinks: p.AttentionSinks = None,
    attention_window: p.AttentionWindow = None,
    speculative: p.Speculative = None,
    max_tokens_per_second: p.MaxTokensPerSecond = None,
    threads: p.Threads = None,
    power_saver: p.PowerSaver = False,
    device: p.Device = None,
    gpu_memory_utilization: p.GPUMemory = None,
    memory_budget: p.MemoryBudget = None,
    target: p.Target = None,
    quant: p.Quant = None,
    embedding: p.Embedding = None,
    kv_dtype: p.KVDtype = None,
    context: p.Context = None,
    block_size: p.BlockSize = None,
    max_batch: p.MaxBatch = None,
) -> None:
    """Converse with a model. A source is compiled first, once."""
    options = p.compile_options(target, quant, embedding, kv_dtype, context, block_size, max_batch)
    params = answer.sampling_params(max_tokens, temperature, top_k, top_p, min_p, seed)
    effort = answer.Effort(max_tokens_per_second, threads, power_saver)
    llm = answer.load(model, options, device, attention_sinks, attention_window, gpu_memory_utilization, speculative, memory_budget, effort)
    if not answer.has_chat_template(llm):
        raise OptionError("has no chat template", file=model, fix="use `cupola run`")
    with contextlib.suppress(ImportError):  # Windows has none; it edits lines by itself
        import readline  # noqa: F401 - gives input() a history and editing keys
    print("Ctrl-D leaves, /help shows more.", file=sys.stderr)
    Conversation(llm, params, system, stats).loop()


class Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, stats: bool) -> None:
        self._llm, self._params, self._system, self._stats = llm, params, system, stats
        self._turns: list[tuple[str, str]] = []

    def loop(self) -> None:
        """Reads and answers lines until the user leaves."""
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\nCtrl-D leaves.", file=sys.stderr)
                continue
            except UnicodeDecodeError as error:
                raise OptionError(f"is not UTF-8: {error.reason}", file="standard input", fix="give UTF-8 text") from None
            if line in ("/exit", "/quit"):
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        if line == "/reset":
            self._turns.clear()
            print("The conversation is forgotten.", file=sys.stderr)
        elif line.startswith("/"):
            print(HELP if line == "/help" else f"There is no {line.split()[0]}.\n{HELP}", file=sys.stderr)
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        turns = [*self._turns, ("user", line)]
        try:
            shown = answer.show(self._llm.stream_chat(answer.messages(self._system, turns), self._params), stoppable=True)
        except RequestError as error:  # most often: the conversation has outgrown the context
            print(one_line(f"error: {error} (/reset begins anew)"), file=sys.stderr)
            return
        self._turns = [*turns, ("assistant", shown.text)]
        if self._stats:
            print(shown.speed(self._llm), file=sys.stderr)
