"""Write a pass: fold the weight of a norm into the linear layer that follows it.

    python tutorials/03_write_a_pass.py [MODEL]      # MODEL: a Hugging Face folder; by default a tiny random Llama

RMSNorm multiplies every normalized number with a learned weight, and a linear layer multiplies what it gets with a
matrix. Both weights are known before the model runs, so their product can be too:

    linear(rms_norm(x, g), W)  =  linear(rms_norm(x, 1), W · g)

That saves more than a multiplication: methods that rotate a model before they quantize it (QuaRot, SpinQuant) need
norms without weights, and begin with exactly this step.

You will see a pass that does it, a check that it does what it says, and a model that gives the same numbers with it.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import transformers
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import cupola
from cupola.models import find_family
from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops

transformers.logging.disable_progress_bar()

# --- 1. The pass -------------------------------------------------------------------------------------------------------
#
# A pass takes a module and returns another one. Most passes are a few rules: functions that get one call of an operation
# and return what shall stand in its place, or None if it is not what they look for. `rewrite_calls` shows the rules every
# call, from the first to the last, and in the end removes what nobody reads any more.


def fold_norm_weight() -> tvm.transform.Pass:
    """The pass. The compiler's own ones take options here, such as the target."""
    rules = {"cupola.linear": fold, "cupola.gated_linear": fold}
    return pass_of("fold_norm_weight", lambda mod: rewrite_calls(mod, rules))


def fold(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """The rule: `call` is a linear layer, plain or gated."""
    linear = ops.Linear.match(call) or ops.GatedLinear.match(call)  # what it is called with, as named fields
    norm = scope.call(linear.x, "nn.rms_norm") if linear else None  # the call that made its x, if that is a norm
    if norm is None or isinstance(norm.args[1], tvm.ir.GenericConst):  # a constant is what we leave behind: done already
        return None
    x, gain = norm.args
    if linear.weight.ty.dtype != gain.ty.dtype:  # weights stored in 16 bits, say: better to leave alone what we did not think about
        return None
    one = relax.const(np.ones(shape_of(gain), "float32"))
    plain = scope.emit(relax.op.nn.rms_norm(x, one, axes=[-1], epsilon=norm.attrs.epsilon))
    # W [N, K] times g [K], an operation on weights alone. The model never runs it: the compiler lifts such operations
    # out and runs them once, tensor by tensor, while it writes the artifact.
    folded = scope.emit(relax.op.multiply(linear.weight, gain))
    return dataclasses.replace(linear, x=plain, weight=folded).emit(call.ty)


# --- 2. What it does, as a test ----------------------------------------------------------------------------------------
#
# A module before, and the module that is expected. Functions in a module are written in TVMScript, which looks like
# Python and is only parsed. TVM's comparison minds what is computed, and not what variables are called.

n = TypeVar("n")  # the number of tokens, unknown until the model runs
ones = relax.const(np.ones(64, "float32"))


@I.ir_module
class Before:
    """A norm and a linear layer, as the earlier passes leave them. Its last three arguments: no bias, no residual, no activation."""

    @R.function
    def forward(
        x: R.Tensor((n, 64), "float32"),
        gain: R.Tensor((64,), "float32"),
        weight: R.Tensor((32, 64), "float32"),
    ) -> R.Tensor((n, 32), "float32"):
        with R.dataflow():
            norm = R.nn.rms_norm(x, gain, axes=[-1], epsilon=1e-6)
            out = R.call_dps_packed("cupola.linear", (norm, weight, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), "float32"))
            R.output(out)
        return out


@I.ir_module
class Expected:
    """The same with the norm's weight in the matrix."""

    @R.function
    def forward(
        x: R.Tensor((n, 64), "float32"),
        gain: R.Tensor((64,), "float32"),
        weight: R.Tensor((32, 64), "float32"),
    ) -> R.Tensor((n, 32), "float32"):
        with R.dataflow():
            norm = R.nn.rms_norm(x, ones, axes=[-1], epsilon=1e-6)
            folded = R.multiply(weight, gain)
            out = R.call_dps_packed("cupola.linear", (norm, folded, 0, 0, R.str("")), out_ty=R.Tensor((n, 32), "float32"))
            R.output(out)
        return out


after = fold_norm_weight()(Before)
tvm.ir.assert_structural_equal(after, Expected)
tvm.ir.assert_structural_equal(fold_norm_weight()(after), after)  # what is folded already must stay as it is
print("The pass turns Before into Expected, and leaves Expected alone.")

# --- 3. In a model -----------------------------------------------------------------------------------------------------
#
# `cupola.models` has a tiny configuration for every family that the tests verify. New models begin with norm weights of
# exactly 1, for which a wrong pass would do no harm; so we disturb all weights first.


def tiny_model(folder: Path) -> Path:
    """Writes a random Llama of two layers, as transformers would."""
    family = find_family("llama")
    assert family is not None
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family.model_type, **family.tiny))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


def weights_of(artifact: cupola.Artifact) -> set[str]:
    """The names of the weights that the compiled model takes."""
    return {weight.name for weight in artifact.manifest.weights}


with tempfile.TemporaryDirectory() as name:
    work = Path(name)
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny_model(work / "model")

    # `extra_passes` run where the pipeline (compiler/pipeline.py) has recognized norms and linear layers, before the
    # target's kernels take their place. A pass that is here to stay gets its own line in that list.
    usual = cupola.compile(model, out=work / "usual", quant="f32")
    folded = cupola.compile(model, out=work / "folded", quant="f32", extra_passes=[fold_norm_weight()])

    gone = sorted(weights_of(usual) - weights_of(folded))
    print(f"\nThe model took {len(weights_of(usual))} weights, and now takes {len(weights_of(folded))}. Changed or gone:")
    print("".join(f"    {weight}\n" for weight in gone))

    tokens = [1, 7, 42, 3, 99, 12, 200, 5]
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    for title, artifact in (("without the pass", usual), ("with the pass", folded)):
        error = np.abs(cupola.LLM(artifact).logits(tokens) - expected).max()
        print(f"Largest difference of a logit from transformers', {title}: {error:.1e}")
        assert error < 1e-3, "a pass must not change what the model says"

print("\nThe same numbers, but for rounding. To go on: a layer norm has a weight and a bias. Can you fold both?")
