"""What a target is. Only this room knows; elsewhere ask a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.state import KVGroup
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets.generic.state_layout import state_pools as generic_pools
from cupola.targets.native.link import link_here

# Lowers one call: adds its PrimFunc to the builder and returns the expression that replaces the call, or None for
# "not mine". Packing of a weight is emitted as Relax ops on the weight; it is lifted out and runs at compile time.
KernelRule = Callable[[relax.Call, relax.BlockBuilder], relax.Expr | None]
StatePools = Callable[[KVGroup, str, int], tuple[TensorSpec, ...]]


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        spec: what the manifest records, and the runtime checks before it loads the library.
        tvm: TVM's own target.
        state_pools: the memory of a K/V group, (group, dtype, block size) -> tensors; raises UnsupportedError for what it can't hold.
        kernels: rules, first match wins.
        schedules: passes that schedule the PrimFuncs that no rule wrote, in order.
        lowering: the name, as registered with TVM, of the passes from TIR to code; its own by default.
        activations: the type in which one kernel hands another what quantized layers read and round.
        multiplies_int8: whether sums of products of int8 are faster than those of float32.
        probes: makes the kernels that find out what the machine can do; every library carries them.
        link: makes a shared library of objects and C sources, for this machine or another one: `link(objects, sources, output)`.
    """

    spec: DeviceSpec
    tvm: tvm.target.Target
    state_pools: StatePools = generic_pools
    kernels: tuple[KernelRule, ...] = ()
    schedules: tuple[tvm.transform.Pass, ...] = ()
    lowering: str = "default"
    activations: str = "float32"
    multiplies_int8: bool = False
    probes: Callable[[], tvm.IRModule] = tvm.IRModule
    link: Callable[[Sequence[Path], Sequence[Path], Path], None] = link_here
