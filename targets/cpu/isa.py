"""The instruction sets that CPU kernels are written for. Kernels ask a field here, never a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cupola.runtime import machine


@dataclass(frozen=True)
class ISA:
    """One instruction set.

    Attributes:
        name: what follows `cpu:` in a target's name.
        description: for `cupola targets`.
        architecture: of the LLVM triple.
        lanes: float32 lanes of a vector register.
        num_registers: vector registers.
        row_tile: rows of a full register tile in matrix-matrix kernels.
        int8_row_tile: the same where int8 is multiplied.
        features: flags that /proc/cpuinfo must show on the machine that runs the code.
        attributes: the same for LLVM, and what it should know of their costs.
        fma: whether multiply-add is one instruction (otherwise it is two roundings).
        f16_convert: whether float16 converts in hardware.
        bf16_tiles: whether many rows of what may be rounded are multiplied in bfloat16, by `tiles.py`; a row's bits then depend on how
            many stand beside it.
        int8_dot: the instruction that `dot.py` multiplies bytes with, "" if there is none.
        bf16_dot: whether one multiplies pairs of bfloat16 at the rate of float32's multiply-adds; attention over pages of it then does.
        lone_row_tile: rows of the tile that a single row is multiplied in as weights come from memory: more than one are that row again.
        foresees: whether weights that lie evenly one after another come fastest if they are not asked for ahead.
        int8_pairs: whether another one multiplies two rows by two columns of bytes, as `int8_pairs.py` does with many rows.
        cpu: the processor, as LLVM calls it, whose instructions take what time.
        abi: how functions are called, as LLVM calls it, where an architecture has several.
        alike: the one whose kernels these are, but for what `bf16_dot`, `lone_row_tile` and `foresees` are about; LLVM makes other code.
    """

    name: str
    description: str
    architecture: str
    lanes: int
    num_registers: int
    row_tile: int
    features: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    fma: bool = True
    f16_convert: bool = True
    int8_dot: str = ""
    int8_row_tile: int = 6
    bf16_dot: bool = False
    lone_row_tile: int = 1
    foresees: bool = False
    int8_pairs: bool = False
    bf16_tiles: bool = False
    cpu: str = ""
    abi: str = ""
    alike: str = ""

    @property
    def batch_invariant(self) -> bool:
        """True if a row of every result has the same bits whatever rows stand beside it."""
        return not self.bf16_tiles

    @property
    def int8_lanes(self) -> int:
        """How many words of four bytes are read at once where int8 is multiplied. Arm's dot products take a lane of a vector for all of
        theirs, where x86-64's take a word from memory."""
        return self.lanes if self.architecture == "aarch64" else 1


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")

# Best first: "cpu" takes the first that the machine has.
ISAS = (
    ISA("avx512amx", "x86-64 with AVX-512, VNNI, and AMX for bfloat16", "x86_64", 16, 32, 12,
        (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
        (*_AVX512, "avx512vnni", "fast-dpwssd", "avx512bf16", "amx-tile", "amx-bf16", "prfchw"),
        int8_dot="vpdpbusd", bf16_tiles=True),
    # sse4a tells AMD's processors from Intel's, where a dot product of bfloat16 takes four times as long as a multiply-add.
    # Zen 4 reads most of what it foresees, and of what is asked for up to a fifth more beside the products of two rows than of one.
    ISA("avx512bf16", "AMD's x86-64 with AVX-512, VNNI and bfloat16 dot products (Zen 4 and later)", "x86_64", 16, 32, 12,
        (*_AVX512, "avx512_vnni", "avx512_bf16", "sse4a"), (*_AVX512, "avx512vnni", "fast-dpwssd", "avx512bf16"),
        int8_dot="vpdpbusd", bf16_dot=True, lone_row_tile=2, foresees=True, alike="avx512vnni"),
    ISA("avx512vnni", "x86-64 with AVX-512 and VNNI", "x86_64", 16, 32, 12, (*_AVX512, "avx512_vnni"),
        (*_AVX512, "avx512vnni", "fast-dpwssd"), int8_dot="vpdpbusd"),
    ISA("avx512", "x86-64 with AVX-512", "x86_64", 16, 32, 12, _AVX512, _AVX512, int8_dot="maddubs"),
    ISA("avxvnni", "x86-64 with AVX2, FMA and VNNI", "x86_64", 8, 16, 6, (*_AVX2, "avx_vnni"), (*_AVX2, "avxvnni"),
        int8_dot="vpdpbusd"),
    ISA("avx2", "x86-64 with AVX2 and FMA", "x86_64", 8, 16, 6, _AVX2, _AVX2, int8_dot="maddubs"),
    ISA("generic", "any x86-64", "x86_64", 4, 16, 6, fma=False, f16_convert=False),
    ISA("i8mm", "64-bit Arm with matrix products of int8 (Armv8.6)", "aarch64", 4, 32, 6, ("asimd", "asimddp", "i8mm"),
        ("neon", "dotprod", "i8mm"), int8_dot="sdot", int8_row_tile=8, int8_pairs=True),
    ISA("apple-m1", "Apple's M1 and later", "aarch64", 4, 32, 6,
        ("asimd", "asimddp", "asimdhp", "fphp", "atomics", "lrcpc", "fcma", "jscvt"), int8_dot="sdot", int8_row_tile=8,
        cpu="apple-m1", alike="dotprod"),
    ISA("dotprod", "64-bit Arm with dot products", "aarch64", 4, 32, 6, ("asimd", "asimddp"), ("neon", "dotprod"),
        int8_dot="sdot", int8_row_tile=8),
    ISA("neon", "any 64-bit Arm", "aarch64", 4, 32, 6, ("asimd",), ("neon",), int8_dot="smull"),
    ISA("riscv64", "64-bit RISC-V (RV64GC)", "riscv64", 4, 32, 6, attributes=("m", "a", "f", "d", "c"), fma=False, f16_convert=False,
        cpu="generic-rv64", abi="lp64d", alike="generic"),
)  # fmt: skip


def runs_here(isa: ISA) -> bool:
    """True if this machine can run code for `isa`; one that does not list its features runs code that needs none."""
    known = machine.cpu_flags() is not None or not isa.features
    return isa.architecture == machine.here() and known and not machine.missing_features(isa.features)


def with_own_kernels(multiplies_int8: bool, isas: Sequence[ISA] = ISAS, *, in_bf16: bool = False) -> tuple[ISA, ...]:
    """Those of `isas` that have kernels of their own: which differ only in how they multiply bytes share the float kernels, and so do those
    with `bf16_tiles` unless a kernel may multiply `in_bf16`. One that is `alike` another one has none, but with `bf16_dot` those that
    may multiply in bfloat16, and no int8."""
    isas = [isa for isa in isas if not isa.alike or (in_bf16 and not multiplies_int8 and isa.bf16_dot)]
    kinds = {(isa.architecture, isa.lanes, in_bf16 and (isa.bf16_tiles, isa.bf16_dot)): isa for isa in isas}
    return tuple(isas) if multiplies_int8 else tuple(kinds.values())
