"""The type of a target. Only this room knows what a target is; elsewhere ask a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.artifact.state import KVGroup
from cupola.runtime.artifact.tensors import E4M3, TensorSpec
from cupola.targets.generic.rules import RULES, STATE_RULES
from cupola.targets.generic.state_layout import LAYOUT
from cupola.targets.native.code import Code, native_code
from cupola.targets.native.link import link_here
from cupola.targets.native.lowering import LOWERING
from cupola.targets.ops import Op
from cupola.targets.state import StateLayout

# Lowers one call: adds its PrimFunc to the builder and returns the expression that replaces the call, or None for
# "not mine". Packing of a weight is emitted as Relax ops on the weight; it is lifted out and runs at compile time.
KernelRule = Callable[[relax.Call, relax.BlockBuilder], relax.Expr | None]


@dataclass(frozen=True)
class Abilities:
    """The capabilities of a target. Whoever would ask for its name asks one of these.

    Attributes:
        activations: the type in which one kernel hands another what quantized layers and attention round anyway.
        activation_bits: what quantized layers may take: activations as they are (16), or quantized to 8 bits too.
        float_dtypes: what weights may be stored as, beside codes.
        kv_dtypes: what K and V may be stored as.
        multiplies_int8: whether sums of products of int8 are faster than those of float32.
        batch_invariant: whether a row of every result has the same bits whatever rows stand beside it.
        bf16_rows: from how many rows on a quantized layer multiplies in bfloat16, activations and weights; attention then does so too, for
            several tokens of a sequence and where K and V are no wider. 0: never.
        bf16_attention: whether attention over K and V in bfloat16, but for latents, rounds queries and weights to it, whatever a sequence
            brings.
        keeps_blocks: whether quantized layers take every format of GGUF's blocks (`targets.formats.ggml`) and of quantized checkpoints.
        rounds_products: whether layers of activations that are not quantized round what they multiply to 16 bits, but for weights of 32 and
            codes whose scales are no float16: to bfloat16 where weights are, else to float16. Attention then does so too with several
            tokens of a sequence, but for pages of 32 bits: to float16 where pages are or are E4M3, else to bfloat16.
        few_rows: up to how many rows layers of activations that are not quantized add up in another order than for more, so that a row has
            the same bits only within either. 0: there is one order.
        latent_attention: whether attention knows keys without values, whose first numbers are these; else heads get K and V of their own.
    """

    activations: str = "float32"
    activation_bits: tuple[int, ...] = (8, 16)
    float_dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    kv_dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "int8", E4M3)
    multiplies_int8: bool = False
    batch_invariant: bool = True
    bf16_rows: int = 0
    bf16_attention: bool = False
    rounds_products: bool = False
    keeps_blocks: bool = True
    few_rows: int = 0
    latent_attention: bool = True


@dataclass(frozen=True)
class Target:
    """A machine to compile for. What it does not bring is the generic one's.

    Attributes:
        spec: what the manifest records, and the runtime checks before it loads the library.
        tvm: TVM's own target.
        abilities: what passes and options ask.
        state: how K and V lie in memory.
        kernels: its own rules; the first match wins.
        optional: the optional operations that `kernels` implement.
        schedules: passes that schedule the PrimFuncs that no rule wrote, in order.
        lowering: the name, as registered with TVM, of the passes from TIR to code; they end in `plain_interface`.
        code: makes of the kernels what is linked into a library: `code(mod, plan, target, folder)`.
        probes: makes the kernels that find out what the machine can do; every library carries them.
        link: makes a shared library of objects and C sources, for this machine or another one: `link(objects, sources, output)`.
        library_suffix: of the file's name.
    """

    spec: DeviceSpec
    tvm: tvm.target.Target
    abilities: Abilities = Abilities()
    state: StateLayout = LAYOUT
    kernels: tuple[KernelRule, ...] = ()
    optional: tuple[type[Op], ...] = ()
    schedules: tuple[tvm.transform.Pass, ...] = ()
    lowering: str = LOWERING
    code: Callable[[tvm.IRModule, Plan, Target, Path], Code] = native_code
    probes: Callable[[], tvm.IRModule] = tvm.IRModule
    link: Callable[[Sequence[Path], Sequence[Path], Path], None] = link_here
    library_suffix: str = ".so"

    @property
    def rules(self) -> tuple[KernelRule, ...]:
        """All rules, the generic ones last. A target with a layout of its own attends over it with a kernel of its own."""
        return (*self.kernels, *RULES, *(STATE_RULES if self.state == LAYOUT else ()))

    def state_pools(self, group: KVGroup, kv_dtype: str, block_size: int) -> tuple[TensorSpec, ...]:
        """The memory of a group's K and V, which the manifest records. Raises UnsupportedError for what the target can't hold."""
        return self.state.pools(group, kv_dtype, block_size)

    def implements(self, op: type[Op]) -> bool:
        """True if there is a kernel for the operation; an optional one is left out of models where there is none."""
        return not op.is_optional or op in self.optional
