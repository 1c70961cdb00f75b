"""AutoRound (arXiv:2309.05516), which stores weights as GPTQ or AWQ do; `packing_format` says which.

Of "auto_round:auto_gptq" stored zeros lack 1, of "auto_round" and "auto_round:gptqmodel" nothing. `extra_config` gives modules bits of
their own. https://github.com/intel/auto-round/blob/main/auto_round/inference/backend.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cupola.compiler.sources.checkpoints.awq import AWQReader
from cupola.compiler.sources.checkpoints.base import Method, Reader, Settings
from cupola.compiler.sources.checkpoints.gptq import BITS, GPTQReader

_ZERO_OFFSETS = {"auto_round:auto_gptq": 1, "auto_round": 0, "auto_round:gptqmodel": 0}
_AWQ = "auto_round:auto_awq"


def _open(settings: Settings) -> Reader:
    packing = settings.choice("packing_format", str(settings.get("backend", "auto_round:auto_gptq")), (*_ZERO_OFFSETS, _AWQ))
    bits, size = settings.whole("bits", None, BITS), settings.group_size()
    settings.choice("data_type", "int", ("int", "int_sym", "int_asym"))
    if packing == _AWQ:
        return AWQReader("AutoRound", size)
    extra = settings.record("extra_config")
    return GPTQReader("AutoRound", lambda name: _own(extra, name, "bits", bits), lambda name: _own(extra, name, "group_size", size),
                      _ZERO_OFFSETS[packing])  # fmt: skip


def _own(extra: Mapping[str, Any], module: str, field: str, default: int) -> int:
    found = extra.get(module)
    value = found.get(field, default) if isinstance(found, dict) else default
    return value if isinstance(value, int) and (field != "bits" or value in BITS) else default


METHODS = (
    Method(
        "AutoRound",
        ("auto-round", "auto_round", "intel/auto-round"),
        _open,
        ("sym", "autoround_version", "iters", "lr", "minmax_lr", "nsamples", "seqlen", "batch_size", "low_gpu_mem_usage",
         "enable_quanted_input", "enable_minmax_tuning", "quant_lm_head", "dataset", "gradient_accumulate_steps", "amp", "scale_dtype",
         "act_bits", "act_group_size", "act_sym", "act_dynamic", "act_data_type", "super_bits", "super_group_size",
         "to_quant_block_names", "block_name_to_quantize", "damp_percent", "desc_act", "true_sequential", "backend",
         "enable_norm_bias_tuning", "low_cpu_mem_usage", "provider", "version", "modules_to_not_convert", "static_kv_dtype",
         "enable_torch_compile", "low_gpu_mem"),
    ),
)  # fmt: skip
