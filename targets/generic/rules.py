"""The rules that stand behind every target's own: a kernel for each operation that is not optional."""

from __future__ import annotations

from cupola.targets.generic.attention import lower_paged_attention
from cupola.targets.generic.experts import lower_expert_linear, lower_top_k
from cupola.targets.generic.linear import lower_linear
from cupola.targets.generic.recurrent import lower_recurrences
from cupola.targets.generic.rows import lower_embedding, lower_norm, lower_rotary, lower_take

RULES = (lower_linear, lower_embedding, lower_take, lower_norm, lower_rotary, lower_expert_linear, lower_top_k, lower_recurrences)
STATE_RULES = (lower_paged_attention,)  # of targets whose state lies as `state_layout.py` says
