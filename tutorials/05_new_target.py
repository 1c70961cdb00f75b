"""A new target: a toy GPU, from nothing to tokens, on a machine that has none.

    python tutorials/05_new_target.py      # needs ziglang, a clang that pip brings: pip install ziglang

A target is data: its name, what TVM knows of it, and rules that lower operations to kernels. This one borrows from `softgpu`, which
runs CUDA's kernels thread by thread on a CPU, and adds a kernel of its own.

You will see a kernel of threads, the check that holds it against float64, what that check says of a kernel that forgets to wait, and
a model that runs with it.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from functools import cache, partial
from pathlib import Path

import torch
import transformers
import tvm
from tvm import relax
from tvm.tirx.script import builder as T

import cupola
from cupola.compiler.kernel_check import compile_case, worst_error
from cupola.models import find_family
from cupola.targets.base import Target
from cupola.targets.emit import argument, prim_func
from cupola.targets.entry import TargetEntry
from cupola.targets.gpu.emit import WARP, blocks, keep, load, registers, shared, store, strided, synchronize, warp_sum
from cupola.targets.registry import get_target, register_target
from cupola.targets.testing.case import SMOLLM2
from cupola.targets.testing.catalogue import rms_norm

transformers.logging.disable_progress_bar()

# --- 1. A kernel -------------------------------------------------------------------------------------------------------
#
# RMSNorm (arXiv:1910.07467): each row is divided by the root of its mean square, and multiplied with a learned weight. cupola's
# kernel gives a row to one warp of 32 threads. Ours gives it to four: each adds up the squares of a quarter, and hands its sum to
# the others in the memory that the threads of a block share.

WARPS = 4


@cache
def norm_kernel(width: int, epsilon: float, waits: bool = True) -> tvm.tirx.PrimFunc:
    """The kernel, in TIR. What is emitted here is what each thread does. With `waits` false it is wrong."""

    def body() -> None:
        n = T.int64()  # the number of rows, unknown until the kernel runs
        x, weight = argument("x", (n, width), "float32"), argument("weight", (width,), "float32")
        out = argument("out", (n, width), "float32")
        with blocks(n, threads=WARPS * WARP) as (row, thread):
            squares, of_warps = registers(), shared(WARPS)
            T.buffer_store(squares, T.float32(0), [0])
            with strided(width, thread, WARPS * WARP) as k:
                value = keep(load(x, row, k))
                T.buffer_store(squares, squares[0] + value * value, [0])
            total = warp_sum(squares[0])  # every lane of the warp gets it
            with T.If(thread % WARP == T.int64(0)), T.Then():
                T.buffer_store(of_warps, total, [thread // WARP])
            if waits:
                synchronize()  # until the other warps have handed over theirs
            mean = (of_warps[0] + of_warps[1] + of_warps[2] + of_warps[3]) * T.float32(1 / width)
            factor = keep(T.float32(1) / T.sqrt(mean + T.float32(epsilon)))
            with strided(width, thread, WARPS * WARP) as k:
                store(out, (row, k), load(x, row, k) * factor * load(weight, k))

    return prim_func(body)


# --- 2. A rule, and the target -----------------------------------------------------------------------------------------
#
# A rule gets a call and returns what shall stand in its place, or None if it is not what it looks for. The first rule that matches
# wins, so ours stands in front of those that all GPUs share.


def lower_norm(call: relax.Call, builder: relax.BlockBuilder, waits: bool = True) -> relax.Expr | None:
    """`R.nn.rms_norm` over rows of float32."""
    if call.op.name != "relax.nn.rms_norm" or call.args[0].ty.ndim != 2 or call.ty.dtype != "float32":
        return None
    kernel = norm_kernel(int(call.args[0].ty.shape[1]), float(call.attrs.epsilon), waits)
    return relax.op.call_tir(builder.add_func(kernel, "norm_by_four_warps"), relax.Tuple(list(call.args)), out_ty=call.ty)


def toy_gpu(waits: bool = True) -> Target:
    """The target: what softgpu is, under another name and with one more kernel."""
    base = get_target("softgpu")
    spec = dataclasses.replace(base.spec, name="toy-gpu", device="toy-gpu")
    return dataclasses.replace(base, spec=spec, kernels=(partial(lower_norm, waits=waits), *base.kernels))


# --- 3. The check ------------------------------------------------------------------------------------------------------
#
# Every operation has cases: inputs at random, a reference in float64, and how far off a result may be. A number up to 1 is right.
# Shared memory begins as NaN, which is no number: who reads before the others have written finds it.

case = rms_norm(SMOLLM2, toy_gpu())
print(f"The kernel is off by {worst_error(case, compile_case(case, toy_gpu())):.2f} of what is allowed")
broken = toy_gpu(waits=False)
print(f"Without the barrier it is off by {worst_error(case, compile_case(case, broken))}")

# --- 4. A model --------------------------------------------------------------------------------------------------------
#
# A target that is registered has a name. A folder `targets/toy_gpu` with a `target.py` would give it one on the command line too. OLMo 2
# has norms behind its layers; those in front of a linear layer become part of its kernel, and ours would have nothing to do.

register_target(TargetEntry("toy-gpu", "a GPU that this tutorial made up", toy_gpu, lambda: True))

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
config = transformers.AutoConfig.for_model("olmo2", **find_family("olmo2").tiny, eos_token_id=None, initializer_range=0.3)
transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
answers = {}
for name in ("cpu", "toy-gpu"):
    artifact = cupola.compile(folder / "model", target=name, quant="f32", out=folder / name)
    params = cupola.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    answers[name] = cupola.LLM(artifact).generate([[3, 1, 4, 1, 5]], params)[0].outputs[0].token_ids
    print(f"{name}: tokens {list(answers[name])}")
print(f"The same tokens: {answers['cpu'] == answers['toy-gpu']}")
kernels = [kernel["name"] for kernel in json.loads((folder / "toy-gpu" / "plan.json").read_text())["kernels"]]
print("Norms are computed by", ", ".join(name for name in kernels if "norm" in name))
