"""`cupola inspect`: what an artifact holds and what it will need."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.inspect_plan import show_plans
from cupola.compiler.cli.inspect_roofline import CONTEXT, PROMPT, show_roofline
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import DeviceSpec, Manifest
from cupola.runtime.artifact.tensors import ITEM_BYTES, FunctionSpec, TensorSpec
from cupola.runtime.errors import OptionError


@dataclass(frozen=True)
class Memory:
    """Bytes that running the artifact takes: `workspace` is what a step takes in, gives out and holds in between."""

    weights: int
    kv: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.workspace


Tokens = Annotated[
    int | None,
    typer.Option(
        "--context", help=f"Reckon for this many tokens a sequence (default: all; with --roofline {CONTEXT}).", show_default=False
    ),
]
Sequences = Annotated[int, typer.Option("--max-num-seqs", help="Reckon for this many sequences at once.")]
ShowPlan = Annotated[
    bool, typer.Option("--plan", help="Show each library's plan instead: its workspace, and its calls of kernels in order.")
]
Machine = Annotated[
    str | None,
    typer.Option("--roofline", help="Show instead what a step moves and launches, and how fast it can be on h100, rtx4090, mi300x, …"),
]
Prompt = Annotated[
    int | None, typer.Option("--prompt", help=f"With --roofline: tokens of the prompt that is reckoned too (default: {PROMPT}).")
]
StepTokens = Annotated[int, typer.Option("--max-num-batched-tokens", help="Reckon for this many tokens in a step.")]


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.", show_default=False)],
    context: Tokens = None,
    max_num_seqs: Sequences = 1,
    max_num_batched_tokens: StepTokens = 512,
    show_plan: ShowPlan = False,
    roofline: Machine = None,
    prompt: Prompt = None,
    as_json: p.Json = False,
) -> None:
    """Show what is inside an artifact: functions, kernels, weights, memory."""
    opened = Artifact.open(artifact, verify=False)
    if show_plan:
        show_plans(opened, as_json=as_json)
        return
    limit = opened.manifest.model.context_length
    usual = limit if roofline is None else min(limit, CONTEXT)
    context = usual if context is None else context
    _check_range("context", context, limit)
    _check_range("max-num-seqs", max_num_seqs, opened.manifest.limits.max_batch_size)
    _check_range("max-num-batched-tokens", max_num_batched_tokens, 2**20)
    if roofline is not None:
        prompt = min(limit, PROMPT) if prompt is None else prompt
        _check_range("prompt", prompt, limit)
        show_roofline(
            opened, roofline, context=context, num_streams=max_num_seqs, prompt=prompt, step_tokens=max_num_batched_tokens, as_json=as_json
        )
        return
    memory = reckon(opened.manifest, context, max_num_seqs, max_num_batched_tokens)
    if as_json:
        typer.echo(json.dumps(_as_dict(opened, memory)))
    else:
        _show(opened, memory, f"{max_num_seqs} × {context} tokens")


def reckon(manifest: Manifest, context: int, max_num_seqs: int, max_num_batched_tokens: int) -> Memory:
    """The memory for `max_num_seqs` sequences of `context` tokens each, `max_num_batched_tokens` of them in a step."""
    blocks, held = math.ceil(context / manifest.kv.block_size), manifest.kv.most_blocks(context, max_num_batched_tokens)
    sizes = {"n": max_num_batched_tokens, "b": max_num_seqs, "b + 1": max_num_seqs + 1, "r": max_num_seqs}
    sizes |= {f"max_blocks_{group}": blocks for group in range(len(manifest.kv.groups))}
    weights = {weight.name for weight in manifest.weights}
    tensors = [t for f in manifest.functions for t in (*f.inputs, *f.outputs) if t.name not in weights]
    return Memory(
        weights=sum(_num_bytes(weight.dtype, weight.shape) for weight in manifest.weights),
        kv=max_num_seqs * sum(manifest.kv.group_bytes_per_block(i) * count for i, count in enumerate(held)),
        workspace=sum(_step_bytes(tensor, sizes) for tensor in tensors) + _intermediate_bytes(manifest.functions, sizes),
    )


def _intermediate_bytes(functions: Iterable[FunctionSpec], sizes: dict[str, int]) -> int:
    blocks = sizes["b"] * max((size for name, size in sizes.items() if name.startswith("max_blocks")), default=0)
    return sum(sizes["n"] * f.bytes_per_token + sizes["r"] * f.bytes_per_logit_row + blocks * f.bytes_per_block for f in functions)


def _step_bytes(tensor: TensorSpec, sizes: dict[str, int]) -> int:
    """Bytes of a tensor of a step; 0 if a dimension is unknown, as in the K/V pages, which are counted apart."""
    if any(isinstance(size, str) and size not in sizes for size in tensor.shape):
        return 0
    return _num_bytes(tensor.dtype, [sizes[size] if isinstance(size, str) else size for size in tensor.shape])


def _num_bytes(dtype: str, shape: Iterable[int]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]


def _check_range(field: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise OptionError(f"is {value}, not from 1 to {highest}", field=field, fix="give one in that range")


def _weight_bytes(manifest: Manifest) -> Counter[str]:
    by_storage: Counter[str] = Counter()
    for weight in manifest.weights:
        by_storage[weight.storage or weight.dtype] += _num_bytes(weight.dtype, weight.shape)
    return by_storage


def _as_dict(artifact: Artifact, memory: Memory) -> dict[str, object]:
    manifest = artifact.manifest
    whole = asdict(manifest)
    del whole["weights"]
    weights = {"count": len(manifest.weights), "num_bytes": memory.weights, "num_bytes_by_storage": dict(_weight_bytes(manifest))}
    return {"artifact": str(artifact.path), **whole, "weights": weights, "memory": {**asdict(memory), "total": memory.total}}


def _show(artifact: Artifact, memory: Memory, wanted: str) -> None:
    console = Console(highlight=False)
    manifest = artifact.manifest
    console.print(_facts(artifact))
    tree = Tree("functions")
    for function in manifest.functions:
        _add_function(tree, function, {weight.name for weight in manifest.weights})
    console.print(tree)
    kernels = Tree(f"kernels ({len(manifest.kernels)})")
    for name, count in sorted(Counter(kernel.name for kernel in manifest.kernels).items()):
        kernels.add(name if count == 1 else f"{name} × {count}", style="dim")
    console.print(kernels)
    table = Table("memory", "MB", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    storages = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in _weight_bytes(manifest).most_common())
    table.add_row("weights", f"{memory.weights / 1e6:.1f}", f"{len(manifest.weights)} tensors: {storages}")
    table.add_row("K/V", f"{memory.kv / 1e6:.1f}", f"{wanted}, {manifest.kv.dtype}, blocks of {manifest.kv.block_size}")
    table.add_row("workspace", f"{memory.workspace / 1e6:.1f}", "a step's inputs, outputs and intermediate results")
    table.add_row("total", f"{memory.total / 1e6:.1f}", style="bold")
    console.print(table)
    for note in manifest.notes:
        console.print(f"note: {note}", markup=False)


def _describe(target: DeviceSpec) -> str:
    return f"{target.name}, {target.device}, {target.triple}, needs {' '.join(target.features) or 'nothing special'}"


def _facts(artifact: Artifact) -> Table:
    m = artifact.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "artifact": str(artifact.path),
        "source": f"{m.source.name} ({m.source.format}, sha256 {m.source.sha256[:16]}…)",
        "model": f"{m.model.family}, {m.model.context_length} tokens of context, vocabulary of {m.model.vocab_size}",
        "scheme": m.scheme,
        **{library.file: _describe(library.target) for library in m.libraries},
        "made by": f"cupola {m.cupola_version}, TVM {m.tvm_version}, format {m.format_version}",
        "batch": f"up to {m.limits.max_batch_size} sequences",
    }
    for name, value in rows.items():
        table.add_row(name, value.replace("[", r"\["))
    return table


def _add_function(tree: Tree, function: FunctionSpec, weights: set[str]) -> None:
    branch = tree.add(function.name, style="bold")
    inputs = [tensor for tensor in function.inputs if tensor.name not in weights]
    for tensor in inputs:
        branch.add(_signature(tensor), style="not bold")
    branch.add(f"and {len(function.inputs) - len(inputs)} weights", style="not bold dim")
    for tensor in function.outputs:
        branch.add(f"→ {_signature(tensor)}", style="not bold")


def _signature(tensor: TensorSpec) -> str:
    return rf"{tensor.name}: {tensor.dtype}\[{', '.join(str(size) for size in tensor.shape)}]"
