"""A CPU's kernels in order, and the target that they make: TVM's target string, abilities, the schedules for what is left."""

from __future__ import annotations

from functools import partial

import tvm

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.environment import num_threads
from cupola.targets.base import Abilities, Target
from cupola.targets.cpu.attention.paged import lower_paged_attention
from cupola.targets.cpu.emit.amx import MANY
from cupola.targets.cpu.experts.floats import lower_expert_linear
from cupola.targets.cpu.experts.int8 import lower_int8_expert_linear
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.dequantized import lower_dequantized_linear
from cupola.targets.cpu.linear.floats import lower_linear
from cupola.targets.cpu.linear.int8 import lower_int8_linear
from cupola.targets.cpu.measure.probes import probes
from cupola.targets.cpu.recurrent.causal_conv import lower_causal_conv
from cupola.targets.cpu.recurrent.linear_attention import lower_linear_attention
from cupola.targets.cpu.recurrent.selective_scan import lower_selective_scan
from cupola.targets.cpu.rows.argmax import lower_argmax
from cupola.targets.cpu.rows.block_maxima import lower_block_maxima
from cupola.targets.cpu.rows.elementwise import schedule_elementwise
from cupola.targets.cpu.rows.embedding import lower_embedding, lower_take
from cupola.targets.cpu.rows.norm import lower_layer_norm, lower_rms_norm
from cupola.targets.cpu.rows.rotary import lower_rotary
from cupola.targets.cpu.rows.sample import lower_sample
from cupola.targets.cpu.state_layout import layout
from cupola.targets.native.link import link_library
from cupola.targets.native.systems import LINUX, System
from cupola.targets.ops import Argmax, BlockMaxima, Sample

RULES = (
    lower_int8_linear,
    lower_dequantized_linear,
    lower_linear,
    lower_int8_expert_linear,
    lower_expert_linear,
    lower_paged_attention,
    lower_causal_conv,
    lower_linear_attention,
    lower_selective_scan,
    lower_rms_norm,
    lower_layer_norm,
    lower_rotary,
    lower_take,
    lower_embedding,
    lower_block_maxima,
    lower_sample,
    lower_argmax,
)


_PROCESSORS = {"x86_64": "x86-64", "aarch64": "generic"}  # LLVM's, of any maker


def cpu_target(isa: ISA, system: System = LINUX) -> Target:
    """A machine with `isa` under `system`. Features are listed, never "native": what the code needs is what the manifest says."""
    triple = system.triple(isa.architecture)
    described = {"mtriple": triple, "mcpu": isa.cpu or _PROCESSORS[isa.architecture], **({"mabi": isa.abi} if isa.abi else {})}
    attributes = [f"+{attribute}" for attribute in isa.attributes]
    target = tvm.target.Target({"kind": "llvm", **described, "mattr": attributes, "num-cores": num_threads()})
    name = f"cpu:{isa.name}" if system == LINUX else f"cpu:{isa.name}@{system.name}"
    spec = DeviceSpec(name, "cpu", isa.name, triple, isa.features)
    rules, schedules = tuple(partial(rule, isa) for rule in RULES), (schedule_elementwise(isa),)
    return Target(
        spec=spec,
        tvm=target,
        abilities=abilities(isa),
        state=layout(isa),
        kernels=rules,
        optional=(BlockMaxima, Argmax, Sample),
        schedules=schedules,
        probes=partial(probes, isa),
        link=partial(link_library, system, isa.architecture),
        library_suffix=system.suffix,
    )


def abilities(isa: ISA) -> Abilities:
    """Of the kernels on `isa`."""
    return Abilities(
        activations="bfloat16" if isa.bf16_tiles else "float32",
        kv_dtypes=("float32", "bfloat16", "float16", "int8"),
        multiplies_int8=bool(isa.int8_dot),
        batch_invariant=isa.batch_invariant,
        bf16_rows=MANY if isa.bf16_tiles else 0,
        bf16_attention=isa.bf16_dot,
    )
