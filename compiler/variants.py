"""One model for several targets: a library each, over the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm import IRModule, relax

from cupola.compiler.build import build_library, plan_memory, signature_of
from cupola.compiler.exits import find_exits
from cupola.compiler.frontend.state import DTYPES
from cupola.compiler.pipeline import Dumps, kernel_passes, run_passes
from cupola.compiler.plan import extract_plan
from cupola.compiler.weights import TRANSFORM, PackedWeight
from cupola.passes.schemes.base import Scheme
from cupola.runtime.artifact.manifest import LibrarySpec
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.artifact.tensors import FunctionSpec, KernelSpec
from cupola.runtime.errors import OptionError, UnsupportedError
from cupola.runtime.machine import system_of
from cupola.targets.base import Target
from cupola.targets.cost import list_kernels


@dataclass(frozen=True)
class Variant:
    """The parts of the artifact that were built for one target."""

    library: LibrarySpec
    forward: FunctionSpec
    kernels: tuple[KernelSpec, ...]
    probes: tuple[KernelSpec, ...]


def check_agreement(mods: Sequence[IRModule], targets: Sequence[Target]) -> None:
    """Raises OptionError unless the modules, lowered for these targets, make the same of the model's weights, and give the same outputs."""
    if len(mods) == 1:
        return
    results = [mod["forward"].ret_ty for mod in mods]
    transforms = [relax.transform.LiftTransformParams()(mod)[TRANSFORM] for mod in mods]
    for problem, values in (("give different outputs", results), ("lay weights out differently", transforms)):
        for value, target in zip(values[1:], targets[1:], strict=True):
            if not tvm_ffi.structural_equal(values[0], value, map_free_vars=True):
                raise _disagreement(targets[0], target, problem)


def _disagreement(first: Target, other: Target, problem: str) -> OptionError:
    names = f"{first.spec.name} and {other.spec.name}"
    return OptionError(f"{names} {problem}", field="target", fix="compile an artifact for each of them")


def check_scheme(scheme: Scheme, targets: Sequence[Target]) -> None:
    """Raises UnsupportedError if a target has no kernels for weights or activations as the scheme has them."""
    stored = {choice.otherwise.dtype for choice in (scheme.linear, scheme.embedding)}
    for target in targets:
        for dtype in sorted(stored - {"int8", "uint8", *target.abilities.float_dtypes}):
            problem = f"is {scheme.name}, and {target.spec.name} has no {dtype}"
            raise UnsupportedError(problem, field="quant", fix="take f16, w8a16 or w4a16")
        if scheme.exact and not target.abilities.keeps_blocks:
            problem = f"is {scheme.name}, and {target.spec.name} has no kernels for all formats of GGUF files"
            raise UnsupportedError(problem, field="quant", fix="take w4a16 or w8a16, which quantize again what they cannot hold")
        if scheme.quantize_x and 8 not in target.abilities.activation_bits:
            problem = f"is {scheme.name}, and {target.spec.name} has no kernels for activations of 8 bits"
            raise UnsupportedError(problem, field="quant", fix=f"take {scheme.name.replace('a8', 'a16')}")


def choose_kv_dtype(asked: str | None, scheme: Scheme, targets: Sequence[Target]) -> tuple[str, tuple[str, ...]]:
    """numpy's name of what K and V are stored as, and notes: as asked, else as the scheme has them, or in float16 where a target can't."""
    dtype = DTYPES[asked or scheme.kv_dtype]
    lacking = next((target.spec.name for target in targets if dtype not in target.abilities.kv_dtypes), None)
    if asked is not None or lacking is None:
        return dtype, ()
    return "float16", (f"K and V are stored as float16: {lacking} can't store them as {dtype}",)


def lay_out_state(kv: KVSpec, targets: Sequence[Target]) -> KVSpec:
    """`kv` with the pools of these targets; those of recurrent state are alike for all.

    Raises:
        OptionError: they lay it out differently.
        UnsupportedError: one can't hold it.
    """
    for target in targets:
        known = target.abilities.kv_dtypes
        if kv.dtype not in known:
            problem = f"can't store K and V as {kv.dtype}"
            raise UnsupportedError(problem, field=f"target {target.spec.name}", fix=f"it can as {', '.join(known)}")
    first, *others = [[target.state_pools(group, kv.dtype, kv.block_size) for group in kv.paged] for target in targets]
    for other, target in zip(others, targets[1:], strict=True):
        if other != first:
            raise _disagreement(targets[0], target, "lay the K/V cache out differently")
    paged = tuple(replace(group, pools=pools) for group, pools in zip(kv.paged, first, strict=True))
    return replace(kv, groups=(*paged, *kv.groups[len(paged) :]))


def build_variant(mod: IRModule, target: Target, weights: Sequence[PackedWeight], file: Path, dumps: Dumps | None = None) -> Variant:
    """Builds `mod`, from which the weights were lifted, into the library `file`, its plan beside it. Raises UnsupportedError."""
    lowered = run_passes(mod, kernel_passes(target), dumps)
    mod = plan_memory(lowered)
    with_probes = IRModule({**dict(mod.functions_items()), **dict(target.probes().functions_items())}, attrs=mod.attrs)
    extracted = extract_plan(with_probes)
    exits = find_exits(lowered["forward"], [weight.spec.name for weight in weights], extracted.plan)
    extracted = replace(extracted, plan=replace(extracted.plan, exits=exits))
    build_library(with_probes, extracted, target, file, dumps)
    plan_file = file.with_name(plan_name(file.name))
    plan_file.write_text(extracted.plan.to_json(), encoding="utf-8")
    forward = signature_of(mod["forward"], "forward", [weight.spec for weight in weights])
    read_plan(plan_file, forward)
    return Variant(LibrarySpec(file.name, plan_file.name, target.spec), forward, list_kernels(mod), list_kernels(target.probes()))


def library_names(targets: Sequence[Target]) -> list[str]:
    """The libraries' file names, in order: lib.so or what the first one's system has, then lib.<device>.so, or lib.<device>-windows.dll."""
    first, *others = targets
    home = system_of(first.spec.triple)
    places = (system_of(target.spec.triple) for target in others)
    marks = (target.spec.device + (f"-{place}" if place != home else "") for target, place in zip(others, places, strict=True))
    return [f"lib{first.library_suffix}", *(f"lib.{mark}{target.library_suffix}" for mark, target in zip(marks, others, strict=True))]


def plan_name(library: str) -> str:
    """The file of a library's plan: plan.json for lib.so."""
    return f"plan{library.removeprefix('lib').rpartition('.')[0]}.json"


def join_functions(variants: Sequence[Variant]) -> FunctionSpec:
    """`forward` as all take it; its workspace is the largest."""
    forwards = [variant.forward for variant in variants]
    fields = ("bytes_per_token", "bytes_per_logit_row", "bytes_per_block")
    most: dict[str, Any] = {field: max(getattr(f, field) for f in forwards) for field in fields}
    return replace(forwards[0], **most)


def join_kernels(lists: Iterable[Sequence[KernelSpec]]) -> tuple[KernelSpec, ...]:
    """Every kernel once; those of one name do the same."""
    found: dict[str, KernelSpec] = {}
    for kernels in lists:
        for kernel in kernels:
            found.setdefault(kernel.name, kernel)
    return tuple(found[name] for name in sorted(found))
