"""The ledger: what each kernel costs for each instruction set, read from its machine code. No timing, so every machine gives the same.

A line is a case of the catalogue compiled for one instruction set: the instructions of its innermost loops by class
(`assembly.CLASSES`), each loop counted once; how many such loops there are; and bytes of code, of stack, and of the
workspaces that one task takes from TVM's pool.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm

from cupola.runtime.environment import num_threads
from cupola.targets.cpu.isa import ISA, ISAS, with_own_kernels
from cupola.targets.cpu.kernels import cpu_target
from cupola.targets.cpu.measure.assembly import CLASSES, functions
from cupola.targets.ledger import Figures, Ledger, differences, read_ledger, write_ledger
from cupola.targets.native.interface import compile_kernels
from cupola.targets.testing.case import SMOLLM2, KernelCase, KernelFactory, Sizes, lower_case
from cupola.targets.testing.catalogue import KERNELS, is_implemented

LEDGER, COLUMN = Path(__file__).with_name("ledger.jsonl"), "isa"


def make_ledger(isas: Sequence[ISA] = ISAS) -> Ledger:
    """Every kernel at a real model's sizes, for each of these instruction sets that has a kernel of its own for it."""
    lines = [(index, case, isa) for index, kernel in enumerate(KERNELS) for case, isa in own_cases(kernel, SMOLLM2) if isa in isas]
    with ProcessPoolExecutor(num_threads(), get_context("spawn")) as pool:
        figures = pool.map(_measure_kernel, (index for index, _, _ in lines), (isa for _, _, isa in lines))
        return {(case.name, isa.name): line for (_, case, isa), line in zip(lines, figures, strict=True)}


def own_cases(kernel: KernelFactory, sizes: Sizes, isas: Sequence[ISA] = ISAS) -> list[tuple[KernelCase, ISA]]:
    """The case on each of `isas` that has a kernel of its own for it."""
    cases = {isa: kernel(sizes, cpu_target(isa)) for isa in isas}
    case = next(iter(cases.values()))
    own = with_own_kernels(case.multiplies_int8, isas, in_bf16=case.may_use_bf16)
    return [(cases[isa], isa) for isa in own if is_implemented(kernel, cpu_target(isa))]


def _measure_kernel(index: int, isa: ISA) -> Figures:
    return measure(KERNELS[index](SMOLLM2, cpu_target(isa)), isa)


def measure(case: KernelCase, isa: ISA) -> Figures:
    """One line's figures; classes without instructions are left out."""
    target = cpu_target(isa)
    library = compile_kernels(lower_case(case, target), target)
    found = functions(library.inspect_source("asm"), isa.architecture)
    counts = sum((loop for function in found for loop in function.loops), Counter[str]())
    figures = {"loops": sum(len(function.loops) for function in found), **{name: counts[name] for name in CLASSES}}
    figures |= {"code_bytes": _code_bytes(library), "stack_bytes": max((function.stack_bytes for function in found), default=0)}
    figures |= _workspaces(library.inspect_source("ll"))
    return {name: figure for name, figure in figures.items() if figure or name == "spill"}


def _code_bytes(library: tvm.runtime.Module) -> int:
    """Bytes of the object file's sections of code (ELF-64, System V ABI chapter 4)."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.o"
        library.write_to_file(str(file), "o")
        data = file.read_bytes()
    [table] = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = (struct.unpack_from("<IIQQQQ", data, table + size * index) for index in range(count))
    executable = 0x4
    return sum(num_bytes for _, _, flags, _, _, num_bytes in sections if flags & executable)


def _workspaces(llvm_ir: str) -> Figures:
    """Bytes taken from the pool, and how often the number is known only at run time."""
    sizes = re.findall(r"call ptr %\w+\(i32 1, i32 [%\w]+, i64 (%?\w+), i32 \d+, i32 \d+\)", llvm_ir)
    known = [int(size) for size in sizes if size.isdecimal()]
    return {"workspace_bytes": sum(known), "dynamic_workspaces": len(sizes) - len(known)}


def main() -> None:
    """Renews the ledger and prints what changed."""
    ledger = make_ledger()
    print("\n".join(differences(read_ledger(LEDGER, COLUMN), ledger)) or "no change")
    write_ledger(ledger, LEDGER, COLUMN)


if __name__ == "__main__":
    main()
