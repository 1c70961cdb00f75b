"""Codes of tables as float32, a vector at a time: E4M3 by its bits; tables of 16 in registers, where an instruction picks lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, local, name
from cupola.targets.emit import int_splat, typed
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES

_E4M3_TO_F16 = 256.0  # E4M3's bits with two more of exponent are those of a float16 that is this many times smaller


@dataclass(frozen=True)
class CodeTable:
    """A table within a kernel.

    Attributes:
        bits: of a code.
        factor: what scales are to be multiplied with, a power of two: `numbers` are so many times smaller.
        values: of 16 codes; none of E4M3.
        memory: the same where no instruction picks lanes of registers.
    """

    simd: Simd
    bits: int
    factor: float
    values: Sequence[float]
    memory: Buffer | None

    @staticmethod
    def of(simd: Simd, form: WeightFormat) -> CodeTable | None:
        """The table of a format's codes, of 4 bits or E4M3; None of those that are numbers. To be made outside of loops that read it."""
        if not form.table:
            return None
        if form.table == "e4m3":
            return CodeTable(simd, form.bits, _E4M3_TO_F16, (), None)
        values, memory = TABLES[form.table], None
        if simd.lanes == 4:
            memory = local(len(values))
            for i, value in enumerate(values):
                T.buffer_store(memory, T.float32(value), [i])
        return CodeTable(simd, form.bits, 1.0, values, memory)

    def numbers(self, words: Value, at: int) -> Value:
        """The entries of the codes that begin at bit `at` of a vector of int32."""
        lanes = self.simd.lanes
        if not self.values:
            return self._e4m3(words << int_splat(24 - at, lanes) if at < 24 else words)
        unsigned = T.reinterpret(typed("uint32", lanes), words)
        return self.pick(T.reinterpret(typed("int32", lanes), unsigned >> T.broadcast(T.uint32(at), lanes)) if at else words)

    def pick(self, index: Value) -> Value:
        """The values that the lowest four bits of a vector of int32 number."""
        lanes = self.simd.lanes
        if self.memory is not None:
            return self.memory[index & int_splat(15, lanes)]
        if lanes == 16:
            return T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", _vector(self.values), index)
        index = name(index)
        low, high = (
            T.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", _vector(self.values[start : start + 8]), index) for start in (0, 8)
        )
        return T.Select((index & int_splat(8, lanes)) == int_splat(0, lanes), low, high)

    def _e4m3(self, words: Value) -> Value:
        """Of the highest byte of each word, 256 times smaller: the sign stays, and below it two bits come before the exponent's."""
        bits = (words >> int_splat(17, self.simd.lanes)) & int_splat(0xBF80, self.simd.lanes)
        halves = T.reinterpret(typed("float16", self.simd.lanes), T.cast(bits, typed("uint16", self.simd.lanes)))
        return self.simd.widen(halves, "float16", self.simd.lanes)


def _vector(values: Sequence[float]) -> Value:
    return T.Shuffle([T.float32(value) for value in values], list(range(len(values))))
