"""Recognizes LayerNorm (Ba et al., 2016) over the last axis, where a model spells it out.

Before:  lv = R.subtract(x, R.mean(x, axis=[-1], keepdims=True))
         lv1 = R.rsqrt(R.add(R.mean(R.power(lv, 2.0), axis=[-1], keepdims=True), eps))
         lv2 = R.multiply(weight, R.multiply(lv, lv1))
After:   lv2 = R.nn.layer_norm(x, weight, zeros, axes=[-1], epsilon=eps)

RMSNorm's pass has run before: centering followed by RMSNorm is LayerNorm without a bias.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from cupola.passes.fuse_rms_norm import is_over_last_axis
from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of


def fuse_layer_norm() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_layer_norm", lambda mod: rewrite_calls(mod, {"nn.rms_norm": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    centered, weight = scope.call(call.args[0], "subtract"), call.args[1]
    if centered is None:
        return None
    x, mean = centered.args[0], scope.call(centered.args[1], "mean")
    if mean is None or not mean.args[0].same_as(x) or not is_over_last_axis(mean):
        return None
    zeros = relax.const(np.zeros(shape_of(weight), "float32"))
    return relax.op.nn.layer_norm(x, weight, zeros, axes=[-1], epsilon=call.attrs.epsilon)
