"""The ledger: what each kernel costs on AMD's GPUs, read from its assembly. A line is a case of the catalogue compiled for one of them.

    registers            vector registers of a lane, the most of its launches
    spill_bytes          memory of a lane for what is in no register, arrays too
    scalar_spills        scalar registers without a place, kept in lanes of a vector register: an instruction each way, and no memory
    shared_bytes         memory of a block
    wide_loads           instructions that load 16 bytes a lane from the device's memory
    matrix_instructions  of MFMA or WMMA

The ledger in the repository must be what the kernels give, better figures too. `make ledger` renews it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
from tvm import tirx

from cupola.targets.base import Target
from cupola.targets.gpu.code import cuda_source
from cupola.targets.gpu.lowering import split
from cupola.targets.ledger import Figures, Ledger, differences, read_ledger, write_ledger
from cupola.targets.registry import get_target
from cupola.targets.rocm.build import compile_rocm
from cupola.targets.rocm.target import ARCHITECTURES
from cupola.targets.testing.case import SMOLLM2, KernelCase, lower_case
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, is_implemented

LEDGER = Path(__file__).with_name("ledger.jsonl")
INSTRUCTIONS = {
    "wide_loads": r"(?:global|buffer|flat)_load_(?:dwordx4|b128)",
    "matrix_instructions": r"v_(?:s?mfmac?|wmma)_\w+",
}
_KERNEL = re.compile(r"^(?P<symbol>\w+):\s*; @(?P=symbol)\n(?P<body>.*?)^\.Lfunc_end\d+:", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(
    r"^(?:  - |    )\.(?P<key>\w+):\s+(?P<value>\S+)$", re.MULTILINE
)  # of a kernel; those of its arguments are indented further


def make_ledger(architectures: Iterable[str] = ARCHITECTURES) -> Ledger:
    """Every kernel at a real model's sizes, on each instruction set."""
    return {key: line for architecture in architectures for key, line in _lines(get_target(f"rocm:{architecture}")).items()}


def _lines(target: Target) -> Ledger:
    cases = [kernel(SMOLLM2, target) for kernel in (*KERNELS, *VARIANTS) if is_implemented(kernel, target)]
    return {(case.name, target.spec.device): line for case, line in zip(cases, measure(cases, target), strict=True)}


def measure(cases: list[KernelCase], target: Target) -> list[Figures]:
    """The figures of each case; all are compiled at once."""
    launches = kernel_figures(assembly_of(cases, target))
    return [_of_all([figures for symbol, figures in launches.items() if symbol.startswith(f"k{i}_")]) for i in range(len(cases))]


def assembly_of(cases: list[KernelCase], target: Target) -> str:
    """The cases' kernels in assembly; the symbols of case i begin with `k{i}_`."""
    kernels: dict[str, tirx.PrimFunc] = {}
    for i, case in enumerate(cases):
        functions = lower_case(case, target).functions_items()
        kernels |= {f"k{i}_{gv.name_hint}": f for gv, f in functions if isinstance(f, tirx.PrimFunc)}
    source = cuda_source(split(tvm.IRModule(kernels), target.tvm), target.tvm, has_tensor_cores=False)
    with TemporaryDirectory() as folder:
        return compile_rocm(source, target.spec.device, Path(folder)).read_text(encoding="utf-8")


def kernel_figures(assembly: str) -> dict[str, Figures]:
    """The figures of each of the device's kernels by symbol, and its `wavefront_size`.

    They are from its instructions, and from what the code object notes of it (LLVM's user guide for AMDGPU, code object V5 metadata).
    """
    text = assembly[assembly.index("\namdhsa.kernels:") : assembly.index("\namdhsa.target:")]
    found = [{note["key"]: note["value"] for note in _NOTE.finditer(f"  - {part}")} for part in text.split("\n  - ")[1:]]
    notes = {note["name"]: note for note in found}
    result = {}
    for kernel in _KERNEL.finditer(assembly):
        note = notes[kernel["symbol"]]
        result[kernel["symbol"]] = {
            "registers": int(note["vgpr_count"]),
            "spill_bytes": int(note["private_segment_fixed_size"]),
            "scalar_spills": int(note["sgpr_spill_count"]),
            "shared_bytes": int(note["group_segment_fixed_size"]),
            **{name: len(re.findall(rf"\b{pattern}\b", kernel["body"])) for name, pattern in INSTRUCTIONS.items()},
            "wavefront_size": int(note["wavefront_size"]),
        }
    return result


def _of_all(launches: list[Figures]) -> Figures:
    most = {column: max(launch[column] for launch in launches) for column in ("registers", "shared_bytes")}
    total = {column: sum(launch[column] for launch in launches) for column in ("spill_bytes", "scalar_spills", *INSTRUCTIONS)}
    return {column: (most | total)[column] for column in launches[0] if column != "wavefront_size"}


def main() -> None:
    """Renews the ledger and prints what changed."""
    ledger = make_ledger()
    print("\n".join(differences(read_ledger(LEDGER), ledger)) or "no change")
    write_ledger(ledger, LEDGER, compiler=f"ziglang {version('ziglang')}")


if __name__ == "__main__":
    main()
