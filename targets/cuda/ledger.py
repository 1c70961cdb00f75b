"""The ledger of CUDA's kernels: what nvcc makes of each, for each of some architectures.

A line is a case of the catalogue at a real model's sizes. Over the kernels that it launches: the most registers of a thread and the most
bytes of shared memory of a block that the code itself asks for, bytes that are spilled, and, read from the PTX (ISA 8.5), how many
instructions read 16 bytes or more of global memory and how many multiply matrices. An instruction within a loop counts once.

Another nvcc gives other figures; the file says which one made it. What must hold with any is in `tests/targets/cuda/`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
from tvm import tirx

from cupola.runtime.errors import UnsupportedError
from cupola.targets.cuda.build import find_nvcc
from cupola.targets.gpu.code import cuda_source
from cupola.targets.gpu.lowering import split
from cupola.targets.ledger import Figures, Ledger, differences, read_compiler, read_ledger, write_ledger
from cupola.targets.registry import get_target
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, is_implemented

LEDGER = Path(__file__).with_name("ledger.jsonl")
ARCHITECTURES = ("sm_80", "sm_90a")
_ENTRY = re.compile(r"^\.visible \.entry (\w+)\(", re.MULTILINE)
_ASSEMBLED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)", re.DOTALL
)
# Vectors of 16 and 32 bytes, asynchronous copies of 16 bytes, and bulk copies.
_WIDE = re.compile(
    r"\bld\.global(?:\.[\w:]+)*\.(?:v4\.[bsuf]32|v2\.[bsuf]64|v8\.[bsuf]32|v4\.[bsuf]64)|\bld\.global(?:\.[\w:]+)*\.b128"
    r"|\bcp\.async\.c[ag]\.shared\.global[^;]*, 16\b|\bcp\.async\.bulk\.(?:tensor\.)?[^;]*\.global\b"
)
_MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|wmma\.mma)\.")


def make_ledger(architectures: Sequence[str] = ARCHITECTURES) -> Ledger:
    """Every kernel of the catalogue that the targets have, by one call of nvcc for each architecture."""
    found: Ledger = {}
    for architecture in architectures:
        source, names = catalogue_source(architecture)
        made = measure(source, architecture)
        for i, name in enumerate(names):
            own = [figures for symbol, figures in made.items() if symbol.startswith(f"k{i}_")]
            found[name, architecture] = {
                column: (sum if column in ("spill_bytes", "wide_loads", "matrix_instructions") else max)(f[column] for f in own)
                for column in own[0]
            }
    return found


def catalogue_source(architecture: str) -> tuple[str, tuple[str, ...]]:
    """All kernels of the catalogue in CUDA C++, and the names of their cases; the symbols of the i-th begin with `k<i>_`."""
    target, kernels, names = get_target(f"cuda:{architecture}"), dict[str, tirx.PrimFunc](), list[str]()
    for kernel in (*KERNELS, *VARIANTS):
        if is_implemented(kernel, target):
            case = kernel(SMOLLM2, target)
            functions = lower_case(case, target).functions_items()
            kernels |= {f"k{len(names)}_{gv.name_hint}": f for gv, f in functions if isinstance(f, tirx.PrimFunc)}
            names.append(case.name)
    return cuda_source(split(tvm.IRModule(kernels), target.tvm), target.tvm), tuple(names)


def measure(source: str, architecture: str) -> dict[str, Figures]:
    """The figures of each kernel of CUDA C++ source, by its symbol. Raises UnsupportedError if nvcc fails."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cu"
        file.write_text(source, encoding="utf-8")
        flags = ["-cubin", f"-arch={architecture}", "-O3", "-std=c++17", "-w", "-Xptxas", "-v", "--keep", "--keep-dir", folder]
        command = [find_nvcc(), *flags, "-o", str(file.with_suffix(".cubin")), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(f"nvcc failed: {done.stderr.strip()[:300]}", field=f"target cuda:{architecture}")
        bodies = entries(file.with_suffix(".ptx").read_text(encoding="utf-8"))
    return {symbol: _figures(bodies[symbol], *figures) for symbol, *figures in _ASSEMBLED.findall(done.stderr)}


def entries(ptx: str) -> dict[str, str]:
    """The text of each kernel, by its symbol, up to the next one's: braces of inline assembly stand at the beginning of lines too."""
    _, *parts = _ENTRY.split(ptx)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _figures(ptx: str, stores: str, loads: str, registers: str, rest: str) -> Figures:
    shared = re.search(r"(\d+) bytes smem", rest)
    return {
        "registers": int(registers),
        "spill_bytes": int(stores) + int(loads),
        "shared_bytes": int(shared[1]) if shared else 0,
        "wide_loads": len(_WIDE.findall(ptx)),
        "matrix_instructions": len(_MATRIX.findall(ptx)),
    }


def nvcc_version() -> str:
    """The nvcc that is found here, such as "nvcc 13.0.88"."""
    said = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV(\d+\.\d+\.\d+)", said)
    return f"nvcc {found[1] if found else 'of an unknown version'}"


def main() -> None:
    """Renews the ledger and prints what changed."""
    ledger, version = make_ledger(), nvcc_version()
    if (before := read_compiler(LEDGER)) not in ("", version):
        print(f"it was made by {before}, and is now by {version}")
    print("\n".join(differences(read_ledger(LEDGER), ledger)) or "no change")
    write_ledger(ledger, LEDGER, compiler=version)


if __name__ == "__main__":
    main()
