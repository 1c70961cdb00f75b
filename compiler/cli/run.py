"""`cupola run`: one answer to one prompt."""

from __future__ import annotations

import sys
from typing import Annotated

from cupola.compiler.cli import answer
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.declare import Option
from cupola.runtime.errors import OptionError

MAX_PROMPT_BYTES = 16 << 20  # more than any context; what a model takes is checked once it is known
Prompt = Annotated[str | None, Option("--prompt", "-p", help="What to answer (default: standard input).", show_default=False)]
Raw = Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.")]


def run_model(
    model: p.Model,
    prompt: Prompt = None,
    system: p.System = None,
    raw: Raw = False,
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
    """Answer a prompt, streaming. A source is compiled first, once."""
    options = p.compile_options(target, quant, embedding, kv_dtype, context, block_size, max_batch)
    params = answer.sampling_params(max_tokens, temperature, top_k, top_p, min_p, seed)
    if raw and system:
        raise OptionError("needs the chat template", field="system", fix="leave out --raw")
    text = _standard_input() if prompt is None else prompt
    if not text:
        raise OptionError("is empty", field="prompt", fix="give some text")
    effort = answer.Effort(max_tokens_per_second, threads, power_saver)
    llm = answer.load(model, options, device, attention_sinks, attention_window, gpu_memory_utilization, speculative, memory_budget, effort)
    if raw or not answer.has_chat_template(llm):
        if system:
            raise OptionError("needs a chat template, which this model has not", field="system", fix="put it into the prompt")
        pieces = llm.stream(text, params)
    else:
        pieces = llm.stream_chat(answer.messages(system, [("user", text)]), params)
    shown = answer.show(pieces)
    if stats:
        print(shown.speed(llm), file=sys.stderr)


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise OptionError("there is none", field="prompt", fix="give one with --prompt, or pipe it in; `cupola chat` converses")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise OptionError(f"has more than {MAX_PROMPT_BYTES >> 20} MiB", file="standard input", field="prompt", fix="shorten it")
    try:
        return data.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise OptionError(f"is not UTF-8 at byte {error.start}", file="standard input", field="prompt", fix="give UTF-8 text") from None
