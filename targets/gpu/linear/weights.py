"""Weights for GPUs, read 16 bytes at a time: rows of floats as they are, codes of 8 and 4 bits in words, which every GPU has a type for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument
from cupola.targets.formats.format import WeightFormat
from cupola.targets.generic.weights import Stored, StoredArguments, StoredKernel, table_entry
from cupola.targets.gpu.emit import gpu, keep, load, registers
from cupola.targets.weight_functions import call_weight_function, weight_function

VECTOR_BYTES = 16  # the widest load of a thread
_SIGN = 128  # what is added to codes with a sign, so that they have none
_FLOAT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def is_readable(stored: StoredKernel) -> bool:
    """True if kernels for GPUs read such a weight: floats, or codes without super-blocks or zeros, in rows of whole words."""
    form = stored.weight_format
    return form is None or (not form.super_size and not form.has_zeros and stored.shape[1] * _bits(stored) % 32 == 0)


def _bits(stored: StoredKernel) -> int:
    """Of an element."""
    form = stored.weight_format
    return _FLOAT_BITS[stored.dtype] if form is None else 4 if form.bits == 4 else 8


@weight_function
def pack_bytes(codes: np.ndarray) -> np.ndarray:
    """Codes of up to 8 bits, [N, K], four in a word, the first in the lowest bits: u32 [N, K / 4]."""
    whole = codes.view(np.uint8)
    return np.ascontiguousarray(whole ^ _SIGN if codes.dtype == np.int8 else whole).view("<u4")


@weight_function
def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, [N, K], eight in a word, the first in the lowest bits: u32 [N, K / 8]."""
    pairs = codes.view(np.uint8)
    return np.ascontiguousarray(pairs[:, 0::2] | pairs[:, 1::2] << 4).view("<u4")


@dataclass(frozen=True)
class Weight:
    """A stored matrix within a kernel.

    Attributes:
        stored: how.
        arrays: its arguments; of codes, `weight` holds words.
    """

    stored: StoredKernel
    arrays: StoredArguments

    @staticmethod
    def tensors_of(stored: Stored, builder: relax.BlockBuilder) -> tuple[relax.Expr, ...]:
        """The tensors of a stored matrix as kernels take them."""
        weight, *scales = stored.tensors
        bits, (rows, columns) = _bits(stored.kernel), stored.kernel.shape
        if stored.kernel.format:
            words = relax.TensorType([rows, columns * bits // 32], "uint32")
            weight = builder.emit(call_weight_function(pack_nibbles if bits == 4 else pack_bytes, [weight], words))
        return (weight, *scales)

    @staticmethod
    def arguments(stored: StoredKernel) -> Weight:
        """The arguments of a kernel: `weight`, and for codes `scales` and perhaps `mins`."""
        form, (rows, columns) = stored.weight_format, stored.shape
        if form is None:
            return Weight(stored, stored.arguments())
        weight = argument("weight", (rows, columns * _bits(stored) // 32), "uint32")
        scales = [
            argument(label, (rows, columns // form.group_size), form.scale_dtype) for label in ("scales", "mins")[: 1 + form.has_mins]
        ]
        return Weight(stored, StoredArguments(form, weight, *scales))

    @staticmethod
    def count_per_load(stored: StoredKernel) -> int:
        """Elements in the widest load."""
        return 8 * VECTOR_BYTES // _bits(stored)

    @property
    def format(self) -> WeightFormat | None:
        """The format of codes; None of floats."""
        return self.arrays.format

    @property
    def has_mins(self) -> bool:
        """True of codes whose groups have mins."""
        return self.format is not None and self.format.has_mins

    @property
    def per_load(self) -> int:
        """Elements that a thread reads at once, which share a scale; 0 if rows do not divide into such."""
        count, columns = self.count_per_load(self.stored), self.stored.shape[1]
        return 0 if columns % count or (self.format is not None and self.format.group_size % count) else count

    def element(self, row: Value, column: Value) -> Value:
        """One element as float32."""
        form, t, bits = self.format, self.arrays, _bits(self.stored)
        if form is None or t.scales is None:
            return load(t.weight, row, column)
        group, each = column // form.group_size, 32 // bits
        code = self._code(t.weight[row, column // each], T.cast(column % each * bits, "uint32"))
        product = load(t.scales, row, group) * code
        return product + load(t.mins, row, group) if t.mins is not None else product

    @property
    def _per_register(self) -> int:
        return 32 // _bits(self.stored) if self.format is not None else 1

    def registers(self) -> Buffer:
        """Room for a `read`."""
        return registers(self.per_load // self._per_register, str(self.arrays.weight.dtype))

    def read(self, row: Value, column: Value, into: Buffer | None = None) -> Buffer:
        """The `per_load` elements from `column` on as they are stored, in registers: of codes, words."""
        buffer, raw = self.arrays.weight, self.registers() if into is None else into
        count, first = self.per_load // self._per_register, column // self._per_register
        lanes = min(count, gpu().max_lanes)
        for start in range(0, count, lanes):
            T.buffer_store(raw, buffer[row, T.ramp(first + T.int64(start), 1, lanes)], [T.ramp(start, 1, lanes)])
        return raw

    def value(self, raw: Buffer, i: int) -> Value:
        """Element i of a `read` as float32; of codes, the number that their scale multiplies."""
        if self.format is None:
            return T.cast(raw[i], "float32")
        each = 32 // _bits(self.stored)
        return self._code(raw[i // each], T.uint32(i % each * _bits(self.stored)))

    def _code(self, word: Value, shift: Value) -> Value:
        """The number of the code that begins at a bit of a word."""
        form, bits = self.format, _bits(self.stored)
        assert form is not None
        code = T.cast((word >> shift) & T.uint32((1 << bits) - 1), "int32")
        if form.table:
            return table_entry(form.table, keep(code))
        return T.cast(code - T.int32(_SIGN if form.code_dtype == "int8" else form.zero), "float32")

    def scale(self, row: Value, column: Value) -> tuple[Value, Value | None]:
        """The scale and the min of the group that `column` lies in. Of codes only."""
        form, t = self.format, self.arrays
        assert form is not None and t.scales is not None
        group = column // form.group_size
        return keep(load(t.scales, row, group)), None if t.mins is None else keep(load(t.mins, row, group))
