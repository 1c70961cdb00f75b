"""Operations that find maxima in logits and choose tokens on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from cupola.runtime.artifact.inputs import MAX_STEPS, MAXIMA_BLOCK
from cupola.targets.ops.base import Op, Tensor


@dataclass(frozen=True)
class BlockMaxima(Op):
    """The largest of each MAXIMA_BLOCK neighbours in a row: x f32 [r, V] -> f32 [r, ⌈V / MAXIMA_BLOCK⌉]; NaN where one of them is.

    The last block of a row may be shorter.
    """

    name: ClassVar[str] = "block_maxima"
    is_optional: ClassVar[bool] = True
    x: Tensor

    def call(self) -> relax.Call:
        """The call."""
        rows, width = self.x.ty.shape
        return self.emit(relax.TensorType((rows, -(-int(width) // MAXIMA_BLOCK)), "float32"))


@dataclass(frozen=True)
class Sample(Op):
    """The token of each row as its `draws` say, by the columns that `runtime.artifact.inputs` has -> i32 [r]; -1 if a logit is NaN.

    logits f32 [r, V], their maxima as of `BlockMaxima`. A token's weight is exp(x). After `LIMIT`, then `TOP_K`, then `TOP_P`, the token
    is the first one up to which, in their order, weights sum to more than the first uniform number's share of what is left.
    Where the largest logit is infinite it is the first of those.
    """

    name: ClassVar[str] = "sample"
    is_optional: ClassVar[bool] = True
    logits: Tensor
    maxima: Tensor
    draws: Tensor  # i32 [r, DRAW_COLUMNS]

    def call(self) -> relax.Call:
        """The call."""
        return self.emit(relax.TensorType((self.logits.ty.shape[0],), "int32"))


@dataclass(frozen=True)
class Argmax(Op):
    """The likeliest token of each row, and the next step's inputs if every sequence goes on with it -> i32 [MAX_STEPS, r].

    logits f32 [r, V], their maxima as of `BlockMaxima`. The result's rows move up by one, and the tokens become the last: the first of a
    row's largest logits, or -1 if one of them is NaN. If every sequence brought one token and wants its logits, which is so if n, b and r
    are equal, the inputs are then changed in place: each token is the chosen one, one position and, in each state group, one slot further.
    With `chosen`, as of `Sample`, those are the tokens, and the uniform numbers of `draws` move up by one as well.
    """

    name: ClassVar[str] = "argmax"
    is_optional: ClassVar[bool] = True
    logits: Tensor
    maxima: Tensor
    tokens: Tensor  # i32 [n]
    positions: Tensor  # i32 [n]
    slots: Tensor  # i32 [n]
    context_lens: Tensor  # i32 [b]
    block_tables: Tensor  # i32 [b, max_blocks]
    block_size: int
    further: tuple[Tensor, ...] = ()  # slots and block tables of the second state group, then those of the third, …
    chosen: Tensor | None = None  # i32 [r]
    draws: Tensor | None = None  # i32 [r, DRAW_COLUMNS]

    def call(self) -> relax.Call:
        """The call."""
        return self.emit(relax.TensorType((MAX_STEPS, self.logits.ty.shape[0]), "int32"))
