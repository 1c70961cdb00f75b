"""Divides the physical memory that a process may have: what it has already, the weights, a step, and K/V with what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cupola.runtime.artifact.arrays import num_bytes as tensor_bytes
from cupola.runtime.artifact.manifest import Manifest
from cupola.runtime.artifact.plan import ALIGNMENT, Plan
from cupola.runtime.device.memory import bytes_beside, choose_num_blocks
from cupola.runtime.device.threads import ThreadOptions
from cupola.runtime.errors import OptionError
from cupola.runtime.system.memory import memory_in_use

FIELD = "memory_budget"
SPARE_BYTES = 16 << 20  # for what the interpreter makes while it runs, and what allocators keep
DIFFERENCE = 1_000_000  # bytes by which what one process takes may exceed what another one did
THREAD_BYTES = 1 << 20  # each thread of kernels: its stack and scratch, as far as they are touched
ROW_COPIES = 4  # of a row of logits in float32, that the sampler may make
LEAST_CONTEXT = 256  # a model that holds less is refused
COMFORTABLE_TOKENS = 128  # a step of fewer makes prompts slow: rather a shorter context than that
_STEPS = (512, 256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Division:
    """The shares of a budget.

    Attributes:
        max_num_seqs, max_num_tokens: of a step.
        kv_memory: bytes for K/V pages.
        context: tokens that one sequence may have.
        note: the same for people.
    """

    max_num_seqs: int
    max_num_tokens: int
    kv_memory: int
    context: int
    note: str


def divide_memory(
    manifest: Manifest,
    plan: Plan,
    budget: int,
    *,
    kv_memory: int | None,
    swap_bytes: int,
    max_num_seqs: int,
    max_num_tokens: int,
    longest: int,
    num_threads: int | None = None,
) -> Division:
    """The largest that fits: all sequences and tokens of a step, with one sequence of `longest` tokens; else fewer sequences, then fewer
    tokens down to COMFORTABLE_TOKENS, then a shorter context, then the smallest step.

    Args:
        kv_memory: the most bytes for K/V; None is as many as sequences can use.
        swap_bytes: of memory beside it.
        max_num_seqs, max_num_tokens: of a step, at most.
        longest: tokens that one sequence keeps at most.
        num_threads: of kernels, as `ThreadOptions` have them.

    Raises:
        OptionError: not even LEAST_CONTEXT tokens fit, with the bytes that would; or the system doesn't say what the process has.
    """
    used = memory_in_use()
    if used is None:
        raise OptionError("can't be kept: this system does not say how much memory a process has", field=FIELD, fix="leave it out")
    fixed = used[0] + _copied_bytes(manifest) + swap_bytes + SPARE_BYTES + THREAD_BYTES * ThreadOptions(num_threads).count()
    least = min(LEAST_CONTEXT, longest)
    for num_tokens, num_seqs, context in _choices(max_num_seqs, max_num_tokens, longest, least):
        beside = fixed + _step_bytes(manifest, plan, num_seqs, num_tokens)
        useful = _kv_bytes(manifest, longest, num_tokens) * num_seqs
        left = min(budget - beside, useful if kv_memory is None else min(useful, kv_memory))
        if left >= _kv_bytes(manifest, context, num_tokens):
            return _division(manifest, budget, num_seqs, num_tokens, left, longest)
    needed = max(beside + _kv_bytes(manifest, least, num_tokens), used[1])
    if kv_memory is not None and beside + kv_memory <= budget:
        raise OptionError(f"is {kv_memory / 1e6:.1f} MB, which hold no {least} tokens", field="kv_memory", fix="give more, or leave it out")
    weights = sum(tensor_bytes(weight.dtype, weight.shape) for weight in manifest.weights)
    problem = (
        f"is {budget / 1e6:.0f} MB; the weights take {weights / 1e6:.0f} of them, and {least} tokens of context fit into {_rounded(needed)}"
    )
    raise OptionError(problem, field=FIELD, fix=f"give at least {_rounded(needed + DIFFERENCE)}, or compile the model with fewer bits")


def _choices(max_num_seqs: int, max_num_tokens: int, longest: int, least: int) -> Iterator[tuple[int, int, int]]:
    """Tokens and sequences of a step, and the tokens of context that there must be room for, the best first."""
    steps = [max_num_tokens, *(step for step in _STEPS if step < max_num_tokens)]
    comfortable = [step for step in steps if step >= COMFORTABLE_TOKENS] or steps[:1]
    for step in comfortable:
        for num_seqs in dict.fromkeys(max(1, max_num_seqs >> halvings) for halvings in range(max_num_seqs.bit_length())):
            yield step, num_seqs, longest
    for step in (comfortable[-1], *(step for step in steps if step < comfortable[-1])):
        yield step, 1, least


def _division(manifest: Manifest, budget: int, num_seqs: int, num_tokens: int, kv_memory: int, longest: int) -> Division:
    kv = manifest.kv
    most = kv.most_blocks(longest, num_tokens)
    blocks = choose_num_blocks(kv, kv_memory, most, num_seqs)
    paged = [blocks[i] * kv.block_size for i in range(len(kv.paged)) if blocks[i] < most[i]]
    context = min([longest, *paged])
    sequences = "1 sequence" if num_seqs == 1 else f"{num_seqs} sequences"
    whole = "" if context >= manifest.model.context_length else f" of {manifest.model.context_length:,}"
    note = (
        f"a memory budget of {budget / 1e6:.0f} MB leaves {context:,}{whole} tokens of context, {sequences} and {num_tokens} tokens "
        f"a step, {kv_memory / 1e6:.1f} MB for K/V"
    )
    return Division(num_seqs, num_tokens, kv_memory, context, note)


def _step_bytes(manifest: Manifest, plan: Plan, num_seqs: int, num_tokens: int) -> int:
    """Weights, and what a step takes in, gives out and holds, with the sampler's copies of logits."""
    return bytes_beside(manifest, plan, num_seqs, num_tokens) + 4 * manifest.model.vocab_size * num_seqs * ROW_COPIES


def _kv_bytes(manifest: Manifest, context: int, num_tokens: int) -> int:
    """K/V of one sequence of so many tokens."""
    kv = manifest.kv
    return sum(kv.group_bytes_per_block(i) * count for i, count in enumerate(kv.most_blocks(context, num_tokens)))


def _copied_bytes(manifest: Manifest) -> int:
    """Of weights that don't lie in their file as kernels want them, and are in memory twice."""
    return sum(tensor_bytes(weight.dtype, weight.shape) for weight in manifest.weights if weight.offset % ALIGNMENT)


def _rounded(num_bytes: int) -> str:
    """In whole megabytes, upwards: what is said to fit does."""
    return f"{-(-num_bytes // 10**6)} MB"
