"""Builds what a machine with a GPU needs to test and measure cupola's kernels, which may have no compiler and no network there.

    python benchmarks/cuda [--out build/cuda] [--dry-run]

The package holds cupola's runtime, the scripts of `on_gpu/` and, for each architecture, a library of all kernels of the catalogue with
inputs and float64 results, and models of Llama 3.1 8B's shape without weights, which are made at random on the GPU. It wants Python 3.11
and numpy, and compares with torch where that is. With --dry-run it is for softgpu, and tiny.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tvm
import typer
from tvm import tirx

import cupola
from cupola.compiler.build import build_library, plan_memory, signature_of
from cupola.compiler.plan import Extracted, extract_plan, plan_of_kernels
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import PackedWeight, lift_weights
from cupola.runtime.artifact.folder import sha256_of
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets.base import Target
from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD, Arrays, KernelCase, Sizes, lower_case
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, is_implemented

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = HERE.parent / "roofline" / "llama-3.1-8b.json"
ARCHITECTURES, QUANTS, MAX_BYTES = ("cuda:sm_80", "cuda:sm_90a"), ("bf16", "w8a16", "w4a16"), 60 << 20
LIKE_MODELS = Sizes(hidden=512, ffn=192, heads=8, kv_heads=2, head_dim=128, vocabulary=320, block=16)  # whole vectors and tiles
NUM_TOKENS = (1, 40)
TINY: dict[str, Any] = {  # what differs from the configuration in a dry run
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 96, "max_position_embeddings": 128, "rope_scaling": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A case of the catalogue whose kernels have names of their own.

    Attributes:
        inputs: all that `forward` takes: those of the case, its results if they have memory of their own, and weights.
        outputs: of them, those results.
        weights: as the target packs them, of the arrays that `now` holds.
    """

    kernel: KernelCase
    extracted: Extracted
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[PackedWeight, ...]
    now: Arrays
    kernels: dict[str, tirx.PrimFunc]


def catalogue(target: Target, most: int | None) -> list[KernelCase]:
    """Every kernel at odd sizes, each kind at a model's too; or at most so many of these cases, spread over them."""
    pairs = [*((LIKE_MODELS, kernel) for kernel in KERNELS), *((ODD[0], kernel) for kernel in (*KERNELS, *VARIANTS))]
    found = [kernel(sizes, target) for sizes, kernel in pairs if is_implemented(kernel, target)]
    return found if most is None else found[:: -(-len(found) // most)]


def prepare(index: int, kernel: KernelCase, target: Target) -> Case:
    """Lowers one case, and plans it."""
    now: Arrays = {}

    def lazy(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
        return LazyTensor(name, shape, dtype, lambda: now[name])

    weights = {i.name: lazy(i.name, tuple(int(size) for size in i.shape), i.dtype) for i in kernel.inputs if i.is_weight}
    lifted, packed = lift_weights(lower_case(kernel, target), weights)
    function = lifted["forward"].with_attr("results", [f"result.{i}" for i in range(8)])
    lifted.update_func(lifted.get_global_var("forward"), function)
    mod = plan_memory(lifted)
    extracted, signature = extract_plan(mod), signature_of(mod["forward"], "forward", [])
    kernels = {f"k{index}_{gv.name_hint}": f for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    return Case(kernel, extracted, signature.inputs, signature.outputs, packed, now, kernels)


def write_kernels(folder: Path, target: Target, cases: Sequence[Case]) -> None:
    """One library with all kernels; what each case calls, in `cases.json`; arrays, in `data.npz`."""
    kernels = tvm.IRModule({name: f for case in cases for name, f in case.kernels.items()})
    extracted = plan_of_kernels(kernels)
    folder.mkdir(parents=True)
    build_library(kernels, extracted, target, folder / "lib.so")
    (folder / "plan.json").write_text(extracted.plan.to_json(), encoding="utf-8")
    listed, data = [], dict[str, np.ndarray[Any, Any]]()
    for index, case in enumerate(cases):
        plan = case.extracted.plan
        assert not case.extracted.constants, f"{case.kernel.name} has constants"
        calls = [{**asdict(call), "kernel": f"k{index}_{call.kernel}"} for call in plan.calls]
        own = [i for i, spec in enumerate(case.inputs) if spec in case.outputs]
        memory = {"storages": plan.storages, "buffers": [asdict(buffer) for buffer in plan.buffers]}
        [result, *_] = case.extracted.returned or own
        inputs = [{**asdict(spec), "is_given": i not in own} for i, spec in enumerate(case.inputs)]
        listed.append({"name": case.kernel.name, "calls": calls, "inputs": inputs, "result": result, **memory})
        for num_tokens in NUM_TOKENS:
            arrays = case.kernel.draw(np.random.default_rng([index, num_tokens]), num_tokens)
            if num_tokens != NUM_TOKENS[0]:  # the same weights, which are stored once
                arrays |= {i.name: case.now[i.name] for i in case.kernel.inputs if i.is_weight}
            case.now.update(arrays)
            expected, prefix = case.kernel.expected(arrays), f"{index}.{num_tokens}."
            given = [i.name for i in case.kernel.inputs if not i.is_weight]
            data |= {f"{prefix}{i}": plain(arrays[name]) for i, name in enumerate(given)}
            data |= {f"{prefix}value": expected.value.astype("float64"), f"{prefix}slack": np.asarray(expected.slack, "float64")}
        data |= {f"{index}.weight.{i}": plain(weight.compute()) for i, weight in enumerate(case.weights)}
    np.savez_compressed(folder / "data.npz", **data)  # type: ignore[arg-type]
    (folder / "cases.json").write_text(json.dumps({"num_tokens": NUM_TOKENS, "cases": listed}), encoding="utf-8")


def plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array that numpy can store: of bfloat16, the bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def write_models(folder: Path, target: str, config: Path, quants: Sequence[str]) -> None:
    """Artifacts without their weights' files."""
    for quant in quants:
        artifact = cupola.compile(config, target=target, quant=quant, out=folder / quant)
        for weights in artifact.path.glob("*.safetensors"):
            weights.unlink()


def main(
    out: Annotated[Path | None, typer.Option(help="The package's folder, which is replaced.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option(help="For softgpu, and tiny.")] = False,
    cases: Annotated[int | None, typer.Option(help="At most so many cases of the catalogue.", show_default=False)] = None,
) -> None:
    """Builds the package."""
    package = out or ROOT / "build" / ("cuda-dry-run" if dry_run else "cuda")
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "on_gpu", package, ignore=ignored)
    shutil.copytree(ROOT / "runtime", package / "cupola" / "runtime", ignore=ignored)
    shutil.copy(ROOT / "cupola" / "__init__.py", package / "cupola")
    settings = json.loads(CONFIG.read_text(encoding="utf-8")) | (TINY if dry_run else {})
    config = package / "config.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    written: dict[str, Path] = {}  # by their content: architectures with the same packing share one file
    for name in ("softgpu",) if dry_run else ARCHITECTURES:
        target = get_target(name)
        folder = package / target.spec.device
        print(f"{name}: kernels", file=sys.stderr, flush=True)
        listed = catalogue(target, cases)
        write_kernels(folder / "kernels", target, [prepare(i, kernel, target) for i, kernel in enumerate(listed)])
        data = folder / "kernels" / "data.npz"
        first = written.setdefault(sha256_of(data), data)
        if first != data:
            data.unlink()
        (folder / "kernels" / "data.json").write_text(json.dumps(first.relative_to(package).as_posix()), encoding="utf-8")
        print(f"{name}: models", file=sys.stderr, flush=True)
        write_models(folder / "models", name, config, QUANTS[-1:] if dry_run else QUANTS)
    num_bytes = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    print(f"{package}: {num_bytes / 2**20:.1f} MiB", file=sys.stderr)
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"that is more than {MAX_BYTES >> 20} MiB")


if __name__ == "__main__":
    typer.run(main)
