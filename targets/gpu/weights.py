"""Weights for GPUs: rows as they are, codes of 4 bits two in a byte, read 16 bytes at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument
from cupola.targets.formats.format import WeightFormat
from cupola.targets.generic.weights import Stored, StoredArguments, StoredKernel
from cupola.targets.gpu.emit import keep, load, registers
from cupola.targets.weight_functions import call_weight_function, weight_function

VECTOR_BYTES = 16  # the widest load of a thread
_ITEM_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8}


def is_readable(stored: StoredKernel) -> bool:
    """True if kernels for GPUs read such a weight: floats, or codes without a table."""
    return stored.weight_format is None or not stored.weight_format.table


@weight_function
def pack_pairs(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, [N, K], two in a byte, the former in the lower half: u8 [N, K / 2]."""
    pairs = codes.view(np.uint8)
    return pairs[:, 0::2] | pairs[:, 1::2] << 4


def _is_packed(stored: StoredKernel) -> bool:
    form = stored.weight_format
    return form is not None and form.bits == 4 and stored.shape[1] % 2 == 0


@dataclass(frozen=True)
class Weight:
    """A stored matrix within a kernel.

    Attributes:
        stored: how.
        arrays: its arguments; of packed codes, `weight` holds bytes.
    """

    stored: StoredKernel
    arrays: StoredArguments

    @staticmethod
    def tensors_of(stored: Stored, builder: relax.BlockBuilder) -> tuple[relax.Expr, ...]:
        """The tensors of a stored matrix as kernels take them."""
        weight, *scales = stored.tensors
        if _is_packed(stored.kernel):
            rows, columns = stored.kernel.shape
            weight = builder.emit(call_weight_function(pack_pairs, [weight], relax.TensorType([rows, columns // 2], "uint8")))
        return (weight, *scales)

    @staticmethod
    def arguments(stored: StoredKernel) -> Weight:
        """The arguments of a kernel: `weight`, and for codes `scales` and perhaps `mins`."""
        if not _is_packed(stored):
            return Weight(stored, stored.arguments())
        form, (rows, columns) = stored.weight_format, stored.shape
        assert form is not None
        weight = argument("weight", (rows, columns // 2), "uint8")
        scales = [
            argument(label, (rows, columns // form.group_size), form.scale_dtype) for label in ("scales", "mins")[: 1 + form.has_mins]
        ]
        return Weight(stored, StoredArguments(form, weight, *scales))

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
        bits = 4 if _is_packed(self.stored) else _ITEM_BITS[self.stored.dtype]
        count, columns = 8 * VECTOR_BYTES // bits, self.stored.shape[1]
        return 0 if columns % count or (self.format is not None and self.format.group_size % count) else count

    def element(self, row: Value, column: Value) -> Value:
        """One element as float32."""
        form, t = self.format, self.arrays
        if form is None or t.scales is None:
            return load(t.weight, row, column)
        group = column // form.group_size
        code = T.cast(t.weight[row, column // 2 if _is_packed(self.stored) else column], "int32")
        if _is_packed(self.stored):
            code = (code >> T.cast(column % 2 * 4, "int32")) & T.int32(15)
        product = load(t.scales, row, group) * T.cast(code - T.int32(form.zero), "float32")
        return product + load(t.mins, row, group) if t.mins is not None else product

    def read(self, row: Value, column: Value) -> Buffer:
        """The `per_load` elements from `column` on as they are stored, in registers."""
        packed = _is_packed(self.stored)
        count, first = (self.per_load // 2, column // 2) if packed else (self.per_load, column)
        raw = registers(count, self.stored.dtype)
        T.buffer_store(raw, self.arrays.weight[row, T.ramp(first, 1, count)], [T.ramp(0, 1, count)])
        return raw

    def value(self, raw: Buffer, i: int) -> Value:
        """Element i of a `read` as float32; of codes, the number that their scale multiplies."""
        form = self.format
        if form is None:
            return T.cast(raw[i], "float32")
        code = T.cast(raw[i // 2 if _is_packed(self.stored) else i], "int32")
        if _is_packed(self.stored):
            code = code >> T.int32(4) if i % 2 else code & T.int32(15)
        return T.cast(code - T.int32(form.zero), "float32")

    def scale(self, row: Value, column: Value) -> tuple[Value, Value | None]:
        """The scale and the min of the group that `column` lies in. Of codes only."""
        form, t = self.format, self.arrays
        assert form is not None and t.scales is not None
        group = column // form.group_size
        return keep(load(t.scales, row, group)), None if t.mins is None else keep(load(t.mins, row, group))
