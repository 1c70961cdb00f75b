"""Matrices of 8 x 8 float32 that a SIMD group of Apple's GPUs holds and multiplies (Metal Shading Language Specification, 2.3, 6.7).

Nothing says which lane has which element, so numbers come and go through the block's memory.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value

SIDE = 8  # rows, and columns
SIZE = SIDE * SIDE


class Matrices:
    """So many of them, by their index. All lanes of a warp call what they do together."""

    def __init__(self, count: int) -> None:
        self._held = T.alloc_buffer((count * SIZE,), "float32", scope="metal.simdgroup")
        self.count = count

    def clear(self) -> None:
        """All to zeros."""
        for i in range(self.count):
            T.evaluate(T.metal.make_filled_simdgroup_matrix(self._held.data, i, T.float32(0), SIDE, SIDE))

    def load(self, i: int, memory: Buffer, place: Value, stride: int = SIDE, turned: bool = False) -> None:
        """From memory whose rows lie `stride` numbers apart; `turned`, what are rows there are columns."""
        T.evaluate(T.metal.simdgroup_load(self._held.data, i, T.address_of(memory[place]), stride, SIDE, SIDE, turned))

    def store(self, i: int, memory: Buffer, place: Value, stride: int = SIDE) -> None:
        """To memory whose rows lie `stride` numbers apart."""
        T.evaluate(T.metal.simdgroup_store(self._held.data, i, T.address_of(memory[place]), stride, SIDE, SIDE, False))

    def multiply(self, i: int, a: Matrices, a_index: int, b: Matrices, b_index: int, c: Matrices | None = None, c_index: int = 0) -> None:
        """Makes i the product of a and b, added to c; to what i is, where there is no c."""
        added = (c._held, c_index) if c is not None else (self._held, i)
        T.evaluate(
            T.metal.simdgroup_multiply_accumulate(self._held.data, i, a._held.data, a_index, b._held.data, b_index, added[0].data, added[1])
        )


def meet() -> None:
    """Waits until all lanes of the warp are here, and what they wrote to the block's memory can be read."""
    T.evaluate(T.tvm_storage_sync("warp"))
