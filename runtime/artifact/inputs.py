"""The table of what one step of `forward` takes and gives. Passes, the manifest's check, the executor and the tests' fakes read it.

n tokens, b sequences, r rows of logits, d drafted tokens; `vocabulary` and `hidden` are the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cupola.runtime.artifact.tensors import TensorSpec

MAXIMA_BLOCK = 64  # logits of a row; `forward` also gives the largest of each such block
MAX_STEPS = 8  # of the model in one step of the engine, each on the token chosen in the one before; `forward` gives those of as many

# The columns of `draws`, int32: what the token of a row of logits is drawn by. x = (logit - the row's largest) / temperature is never
# above 0, and the bits of its magnitude, as an integer, order tokens: the likeliest have 0. A fraction is two integers of 30 bits, upper
# and lower; ONE is the upper one of 1.
TEMPERATURE = 0  # the bits of a float32
LIMIT = 1  # tokens whose bits are more than this are left out
TOP_K = 2  # so many are left of the likeliest, and those as likely as the last of them; 0: all
TOP_P = 3  # a fraction: the likeliest that have so much probability together are left, and those as likely as the last of them
UNIFORMS = 5  # MAX_STEPS fractions below 1, for one step each: a token's place in the distribution that is left
DRAW_COLUMNS = UNIFORMS + 2 * MAX_STEPS
FRACTION_BITS = 30
ONE = 1 << FRACTION_BITS
NO_LIMIT = 0x7F800000  # infinity's bits
LIKELIEST = (0x3F800000, 0, 0, ONE, 0, *(0,) * (2 * MAX_STEPS))  # the first of the largest logits


@dataclass(frozen=True)
class StepTensor:
    """A line of the table.

    Attributes:
        name: of the tensor; of one that each state group has, `slots` stands for `slots.0`, `slots.1` and so on.
        dtype: of its elements.
        shape: sizes, or names of sizes; those of `each_group` are a group's own (`max_blocks` of group 1 is `max_blocks_1`).
        each_group: whether each state group has one.
        optional: whether an artifact may do without it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    each_group: bool = False
    optional: bool = False

    def of_group(self, group: int) -> TensorSpec:
        """The tensor of a state group."""
        sizes = (f"{size}_{group}" if size in _SIZES_OF_GROUPS else size for size in self.shape)
        return TensorSpec(f"{self.name}.{group}", self.dtype, tuple(sizes))

    def specs(self, num_groups: int) -> tuple[TensorSpec, ...]:
        """The tensors that this line stands for."""
        return tuple(map(self.of_group, range(num_groups))) if self.each_group else (TensorSpec(self.name, self.dtype, self.shape),)


_SIZES_OF_GROUPS = ("max_blocks",)
SIZES_OF_MODELS = ("hidden",)  # numbers in an artifact, which the table only names

STEP_INPUTS = (
    StepTensor("tokens", "int32", ("n",)),
    StepTensor("positions", "int32", ("n",)),
    StepTensor("query_starts", "int32", ("b + 1",)),
    StepTensor("context_lens", "int32", ("b",)),
    StepTensor("logit_rows", "int32", ("r",)),  # indices into the n tokens
    StepTensor("slots", "int32", ("n",), each_group=True),
    StepTensor("block_tables", "int32", ("b", "max_blocks"), each_group=True),
    # Of recurrent groups, in place of slots and tables: the slot that a state is read from, and the one that it is written to.
    StepTensor("state_slots", "int32", ("b", 2), each_group=True, optional=True),
    StepTensor("adapter_ids", "int32", ("b",), optional=True),  # which LoRA adapter a sequence asks for; -1 is none
    StepTensor("draws", "int32", ("r", DRAW_COLUMNS), optional=True),
    StepTensor("parents", "int32", ("n",), optional=True),  # of a token in a tree of drafted ones, the index of the token before it
)
STEP_OUTPUTS = (
    StepTensor("logits", "float32", ("r", "vocabulary")),
    StepTensor("hidden", "float32", ("r", "hidden"), optional=True),  # after the last norm: what the vocabulary projection reads
    StepTensor("maxima", "float32", ("r", "maxima"), optional=True),  # of each MAXIMA_BLOCK neighbours in a row of logits
    StepTensor("argmax", "int32", (MAX_STEPS, "r"), optional=True),  # the last step's last, or what `draws` drew; -1 where a logit is NaN
)


def input_specs(num_groups: int) -> tuple[TensorSpec, ...]:
    """The inputs that every artifact of so many paged state groups takes, in the order of the table, a group's side by side."""
    once = [line for line in STEP_INPUTS if not (line.optional or line.each_group)]
    each = [line for line in STEP_INPUTS if line.each_group and not line.optional]
    return (*(spec for line in once for spec in line.specs(1)), *(line.of_group(group) for group in range(num_groups) for line in each))


def state_slots(group: int) -> TensorSpec:
    """The input that a recurrent state group has in place of slots and tables."""
    return next(line for line in STEP_INPUTS if line.name == "state_slots").of_group(group)


def input_line(name: str) -> StepTensor | None:
    """The line that an input such as `tokens` or `slots.1` belongs to; None if it is no input of a step."""
    stem, dot, _ = name.partition(".")
    return next((line for line in STEP_INPUTS if line.name == stem and line.each_group == bool(dot)), None)


def output_specs(names: Sequence[str], vocab_size: int) -> tuple[TensorSpec, ...]:
    """The outputs called `names`, in the order of the table, for a vocabulary of that size."""
    sizes: dict[int | str, int] = {"vocabulary": vocab_size, "maxima": -(-vocab_size // MAXIMA_BLOCK)}
    lines = (line for line in STEP_OUTPUTS if line.name in names)
    return tuple(TensorSpec(line.name, line.dtype, tuple(sizes.get(size, size) for size in line.shape)) for line in lines)
