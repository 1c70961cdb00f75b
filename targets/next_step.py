"""Tokens of several steps, as kernels of all targets write them, and the inputs of the step that goes on with the last."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, MAX_STEPS, UNIFORMS
from cupola.targets.emit import Buffer, Value, argument
from cupola.targets.ops import Argmax

INFINITY_BITS, MAGNITUDE_BITS = 0x7F800000, 0x7FFFFFFF  # of float32; a magnitude of more than infinity's is NaN


def magnitude(value: Value) -> Value:
    """Bits that tell NaN from numbers: TVM's simplifier takes for granted that a number equals itself."""
    return T.reinterpret("int32", value) & T.int32(MAGNITUDE_BITS)


def lower_chosen_tokens(
    call: relax.Call,
    builder: relax.BlockBuilder,
    argmax: Callable[[int, int, int], tvm.tirx.PrimFunc],
    take_chosen: Callable[[int, int], tvm.tirx.PrimFunc],
) -> relax.Expr | None:
    """`Argmax` by the kernel `argmax`, of the width, the block size and how many groups of layers there are besides the first; where tokens
    are `chosen` already by `take_chosen`, of the latter two."""
    op = Argmax.match(call)
    if op is None:
        return None
    width, num_further = int(op.logits.ty.shape[1]), len(op.further) // 2
    inputs = [op.tokens, op.positions, op.slots, op.context_lens, op.block_tables, *op.further]
    if op.chosen is None:
        function = builder.add_func(argmax(width, op.block_size, num_further), f"argmax_{width}")
        return relax.op.call_tir(function, relax.Tuple([op.logits, op.maxima, *inputs]), out_ty=call.ty)
    function = builder.add_func(take_chosen(op.block_size, num_further), "take_chosen")
    return relax.op.call_tir(function, relax.Tuple([op.chosen, op.draws, *inputs]), out_ty=call.ty)


class ChosenTokens:
    """The arguments `chosen` and `draws` of a kernel."""

    def __init__(self, rows: Value) -> None:
        self.tokens = argument("chosen", (rows,), "int32")
        self.draws = argument("draws", (rows, DRAW_COLUMNS), "int32")

    def take(self, row: Value) -> Value:
        """A row's token; the random numbers of the steps behind it move up by one."""
        with T.serial(2 * (MAX_STEPS - 1)) as half:
            T.buffer_store(self.draws, self.draws[row, UNIFORMS + 2 + half], [row, UNIFORMS + half])
        return self.tokens[row]


class NextStep:
    """The arguments behind those: inputs, which are changed where every sequence goes on, and the tokens.

    Args:
        rows: of logits.
        block_size: tokens of a block.
        num_further: groups of layers besides the first.
        keep: how the target computes a value once.
    """

    def __init__(self, rows: Value, block_size: int, num_further: int, keep: Callable[[Value], Value]) -> None:
        self._rows, self._block_size, self._keep = rows, block_size, keep
        self._n, self._batch, max_blocks = (T.int64() for _ in range(3))
        self._tokens, self._positions, slots = (argument(label, (self._n,), "int32") for label in ("tokens", "positions", "slots"))
        self._context_lens = argument("context_lens", (self._batch,), "int32")
        self._groups = [(slots, argument("block_tables", (self._batch, max_blocks), "int32"), max_blocks)]
        for group in range(1, num_further + 1):
            more_slots, columns = argument(f"slots_{group}", (self._n,), "int32"), T.int64()
            self._groups.append((more_slots, argument(f"block_tables_{group}", (self._batch, columns), "int32"), columns))
        self._out: Buffer = argument("out", (MAX_STEPS, rows), "int32")

    def add(self, row: Value, token: Value) -> None:
        """Moves the tokens of steps before up by one, and writes the last."""
        with T.serial(MAX_STEPS - 1) as step:
            T.buffer_store(self._out, self._out[step + 1, row], [step, row])
        T.buffer_store(self._out, token, [MAX_STEPS - 1, row])

    def go_on(self, row: Value) -> None:
        """The sequence whose row that is if all bring one token and want its logits."""
        with T.If(T.And(self._n == self._batch, self._n == self._rows)), T.Then():
            index = self._keep(self._context_lens[row])  # of the next token, among those that the tables show
            token = self._out[MAX_STEPS - 1, row]
            T.buffer_store(self._tokens, T.max(token, 0), [row])  # a token for the embedding, whatever comes of it
            T.buffer_store(self._positions, self._positions[row] + 1, [row])
            for slots, tables, columns in self._groups:
                column = T.min(T.cast(T.truncdiv(index, self._block_size), "int64"), columns - 1)  # past the end, nobody goes on
                T.buffer_store(slots, tables[row, column] * self._block_size + T.truncmod(index, self._block_size), [row])
            T.buffer_store(self._context_lens, index + 1, [row])
