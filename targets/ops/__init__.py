"""The operations that a target must bring kernels for, beyond Relax's own.

Passes write them, `targets/` lowers them. In the IR each is `R.call_dps_packed("cupola.<name>", …)`: its fields in order,
an absent tensor as the integer 0, without those at the end that have their defaults. Shapes: n tokens, H query heads,
G key/value heads, D key dim, E value dim, or E experts. Relax's own `take`, `nn.rms_norm` and `nn.layer_norm` are lowered the same way.
"""

from cupola.targets.ops.attention import Attention, PagedAttention, Rotary
from cupola.targets.ops.base import PREFIX, Op, Tensor, op_name
from cupola.targets.ops.experts import ExpertLinear, GatedExpertLinear, TopK
from cupola.targets.ops.linear import ACTIVATIONS, Embedding, GatedLinear, Linear, factors_of
from cupola.targets.ops.recurrent import RECURRENCES, CausalConv, LinearAttention, Recurrence, SelectiveScan, match_recurrence
from cupola.targets.ops.sampling import Argmax, BlockMaxima, Sample

__all__ = [
    "ACTIVATIONS",
    "PREFIX",
    "RECURRENCES",
    "Argmax",
    "Attention",
    "BlockMaxima",
    "CausalConv",
    "Embedding",
    "ExpertLinear",
    "GatedExpertLinear",
    "GatedLinear",
    "Linear",
    "LinearAttention",
    "Op",
    "PagedAttention",
    "Recurrence",
    "Rotary",
    "Sample",
    "SelectiveScan",
    "Tensor",
    "TopK",
    "factors_of",
    "match_recurrence",
    "op_name",
]
