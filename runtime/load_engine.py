"""Loads an artifact's library, gives it memory, and puts an engine over it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import Manifest
from cupola.runtime.device.block_store import KEY_BYTES, make_block_store
from cupola.runtime.device.executor import Opened, open_library
from cupola.runtime.device.memory import choose_kv_memory, choose_num_blocks, make_swap_space, parse_bytes
from cupola.runtime.device.memory_budget import FIELD, divide_memory
from cupola.runtime.device.threads import ThreadOptions
from cupola.runtime.engine.attention_sinks import choose_sink_window
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.proposers.choose import make_proposer
from cupola.runtime.engine.speculative import Speculative
from cupola.runtime.engine.warm_up import warm_up
from cupola.runtime.errors import OptionError
from cupola.runtime.machine import trim_heap
from cupola.runtime.text.tokenizer import Tokenizer


def load_engine(
    artifact: Artifact,
    config: EngineConfig,
    tokenizer: Tokenizer | None,
    *,
    kv_memory: int | str | None,
    memory_budget: int | str | None,
    gpu_memory_utilization: float | None,
    swap_memory: int | str,
    swap_folder: str | Path | None,
    cache_folder: str | Path | None,
    cache_size: int | str,
    device: str | None,
    speculative: Speculative = None,
    warms_up: bool = False,
) -> Engine:
    """An engine that runs the artifact, with no more sequences in a step than it was compiled for. Raises as `LLM`.

    `speculative` stands in for that of `config`, which can't hold a function. With `warms_up` the first request finds all as later ones do.
    """
    manifest = artifact.manifest
    manifest.model.check_answers(artifact.path)
    config = replace(config, max_num_seqs=min(config.max_num_seqs, manifest.limits.max_batch_size))
    model, kv = manifest.model, manifest.kv
    sinks = choose_sink_window(config.attention_sinks, config.attention_window, model, kv)
    longest = sinks.num_kept if sinks else model.context_length
    opened, note = open_library(artifact, device), None
    if memory_budget is not None:
        config, kv_memory, note = _within_budget(opened, config, memory_budget, kv_memory, swap_memory, speculative, longest)
    most = kv.most_blocks(longest, config.max_num_batched_tokens)
    limits = config.max_num_seqs, config.max_num_batched_tokens
    kv_memory = choose_kv_memory(manifest, opened.library.plan, opened.device, kv_memory, gpu_memory_utilization, *limits)
    num_blocks = choose_num_blocks(kv, kv_memory, most, config.max_num_seqs)
    swap = make_swap_space(kv, swap_memory, swap_folder, most)
    num_tokens = min(num_blocks[i] * kv.block_size for i in range(len(kv.paged))) if kv.paged else 0
    threads = ThreadOptions(config.num_threads, config.power_saver)
    proposer = make_proposer(speculative or config.speculative, artifact, tokenizer, num_tokens, config.max_num_seqs, threads)
    # What K/V depends on beside the tokens: weights, kernels, and what sequences forget.
    key = hashlib.sha256(f"{artifact.sha256} {opened.library.file.name} {sinks}".encode()).digest()[:KEY_BYTES]
    store = make_block_store(cache_folder, cache_size, key, enable_prefix_caching=config.enable_prefix_caching)
    executor = opened.executor(num_blocks, swap, threads=threads)
    if warms_up:
        warm_up(executor, model, kv, config, tokenizer)
    engine = Engine(executor, model, kv, config, tokenizer, block_store=store, proposer=proposer)
    engine.notes += _notes(opened, note, speculates=engine.speculation is not None)
    trim_heap()  # reading a tokenizer leaves as much behind as it takes
    return engine


def _within_budget(
    opened: Opened,
    config: EngineConfig,
    memory_budget: int | str,
    kv_memory: int | str | None,
    swap_memory: int | str,
    speculative: Speculative,
    longest: int,
) -> tuple[EngineConfig, int, str]:
    """The parts that fit into `memory_budget`: sequences and tokens of a step, K/V memory, and a note. Raises OptionError."""
    budget = parse_bytes(memory_budget, FIELD)
    if not opened.device.shares_memory:
        fix = "say with gpu_memory_utilization how much of the device's memory to take"
        raise OptionError("is for models that run in the host's memory", field=FIELD, fix=fix)
    if speculative is not None or config.speculative is not None:
        raise OptionError("does not count what drafted tokens take", field=FIELD, fix="leave speculative out, or say kv_memory instead")
    division = divide_memory(
        opened.artifact.manifest, opened.library.plan, budget,
        kv_memory=None if kv_memory is None else parse_bytes(kv_memory, "kv_memory"),
        swap_bytes=parse_bytes(swap_memory, "swap_memory", lowest=0),  # pages of a file that is mapped count too
        max_num_seqs=config.max_num_seqs, max_num_tokens=config.max_num_batched_tokens, longest=longest,
        num_threads=config.num_threads,
    )  # fmt: skip
    config = replace(
        config, max_num_seqs=division.max_num_seqs, max_num_batched_tokens=division.max_num_tokens, memory_budget=budget,
        max_num_mixed_prefill_tokens=min(config.max_num_mixed_prefill_tokens, division.max_num_tokens),
    )  # fmt: skip
    return config, division.kv_memory, division.note


def _notes(opened: Opened, of_budget: str | None, *, speculates: bool) -> tuple[str, ...]:
    """For users: what a memory budget leaves, and where drafts may change an answer."""
    notes: tuple[str, ...] = () if of_budget is None else (of_budget,)
    rounded = None if opened.device.shares_memory else _rounded_attention(opened.artifact.manifest)  # CPUs attend to few tokens as to one
    if speculates and rounded is not None:
        notes += (f"tokens that are looked at together are attended to in {rounded}: where two are nearly as likely, an answer may "
                  "go another way than without drafts, as it may among other answers",)  # fmt: skip
    return notes


def _rounded_attention(manifest: Manifest) -> str | None:
    """The type that attention of several tokens rounds to, unlike that of one; None if all of it is in float32."""
    types = (kernel.cost.arithmetic for kernel in manifest.kernels if kernel.cost.operations_per_pair)
    return next((arithmetic for arithmetic in types if arithmetic != "float32"), None)
