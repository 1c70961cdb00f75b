"""`cupola.compile`: one call from a checkpoint to an artifact."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.compiler.options import CompileOptions, short_name
from cupola.compiler.progress import Progress, default_progress
from cupola.compiler.signals import keep_signals
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.environment import interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.targets.registry import name_targets

if TYPE_CHECKING:
    import tvm


def compile(
    source: str | Path,
    *,
    target: str = "cpu",
    quant: str = "f32",
    embedding: str = "auto",
    out: str | Path | None = None,
    context: int | None = None,
    kv_dtype: str | None = None,
    block_size: int = 16,
    max_batch: int = 64,
    os: str | None = None,
    draft_vocabulary: int | None = None,
    progress: Progress | None = None,
    extra_passes: Sequence[tvm.transform.Pass] = (),
) -> Artifact:
    """Compiles a model.

    Args:
        source: a Hugging Face folder, a GGUF file, a hub id or a built-in name; or a `config.json` alone, of which is made what can be
            inspected, and has no weights.
        target: what to compile for, as `cupola targets` lists; several, with commas between them, get a library each over the same weights.
        quant: how weights are stored and multiplied: f32, bf16, f16; w8a8 or w4a8, weights of 8 or 4 bits and activations
            quantized to 8; w8a16 or w4a16, activations as they are; w4a16-g64 and the like in larger groups
            than 32; f8a16, weights in FP8 (E4M3); keep-a8 or keep-a16, every weight in the format that its file has, as GGUF files do;
            auto, what suits the source and the target: of GGUF files one of those two.
        embedding: how the embedding and the vocabulary projection are stored: f32, bf16, f16, w8, w4; auto, as the source has
            them if `quant` holds that, else as `quant` has it, but never quantized to less than 8 bits.
        out: the artifact's folder; by default `<name>-<target>-<quant>` in the current one.
        context: tokens that a sequence may have; by default what the model was made for.
        kv_dtype: how K and V are stored; by default like the weights, in bf16 or f16 if those are quantized, and in f16 where a target
            has no bf16.
        block_size: tokens in a block of the K/V cache.
        max_batch: sequences that one step may hold.
        os: the operating system to compile for: linux, macos, windows or android, or several with commas between them; by default this
            machine's. A target may name its own, as in TARGET@android.
        draft_vocabulary: for a small model that is to draft for a large one (`speculative="draft:FOLDER"`): it says so many tokens
            alone, the first ones, and reads a smaller projection for each guess. It is good for nothing else.
        progress: what to report to.
        extra_passes: run after the operations were recognized, before the target's kernels replace them.

    Raises:
        InputError: naming the file, the field and the fix.
    """
    options = CompileOptions(target, quant, embedding, kv_dtype, context, block_size, max_batch, os, draft_vocabulary)
    named = "+".join(name_targets(target, os)).replace(":", "-").replace("@", "-")
    folder = Path(out) if out is not None else Path(f"{short_name(source)}-{named}-{quant}")
    try:
        from cupola.compiler.driver import compile_to  # here: it loads torch and TVM's compiler
    except ModuleNotFoundError as error:
        problem = f"needs the package {error.name}, which running a model does not"
        raise UnsupportedError(problem, field="compiling", fix="pip install 'cupola[compiler]'") from error

    with keep_signals():
        return compile_to(folder, source, options, progress or default_progress(), extra_passes)


def compile_apart(source: str, options: CompileOptions, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Compiles in a process of its own, whose memory goes back when it ends; its progress goes to standard error."""
    command = [*interpreter(), "-m", "cupola", "compile", "--out", str(folder)]
    for name, value in asdict(options).items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.run([*command, "--", source], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
