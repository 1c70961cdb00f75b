"""FP8: weights in E4M3 with scales of blocks (DeepSeek, Qwen), of rows (FBGEMM) or of tensors (ModelOpt), and ModelOpt's NVFP4.

`fp8`: weight E4M3 [N, K], weight_scale_inv [⌈N / 128⌉, ⌈K / 128⌉], which multiplies in spite of its name, or one of the tensor;
`fbgemm_fp8`: weight_scale [N, 1]; `modelopt`: weight_scale of the tensor, or of NVFP4: weight u8 [N, K / 2], weight_scale E4M3
[N, K / 16] times weight_scale_2.
https://github.com/deepseek-ai/DeepSeek-V3/blob/main/inference/kernel.py, https://github.com/NVIDIA/Model-Optimizer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.checkpoints.base import Method, Parts, Settings
from cupola.compiler.sources.checkpoints.float_codes import Scales, e2m1_weight, e4m3_weight
from cupola.runtime.errors import SourceError

_BESIDE = {
    ".input_scale": "scales of activations",
    ".activation_scale": "scales of activations",
    ".input_scale_ub": "scales of activations",
    ".k_scale": "scales of the K/V cache",
    ".v_scale": "scales of the K/V cache",
}


@dataclass(frozen=True)
class _Reader:
    block: tuple[int, int] | None
    marks: tuple[str, ...] = (".weight_scale_inv", ".weight_scale")
    parts: tuple[str, ...] = (".weight", ".weight_scale_inv", ".weight_scale", ".weight_scale_2")
    result: str = ".weight"

    @property
    def beside(self) -> Mapping[str, str]:
        return _BESIDE

    def read(self, parts: Parts) -> LazyTensor:
        name = parts.name + self.result
        if (weight := parts.get(".weight")) is not None and weight.stored_as == "U8":
            return e2m1_weight(parts, name, "FP4", ".weight", ".weight_scale", ".weight_scale_2", divides=False)
        if parts.get(".weight_scale_inv") is not None:
            return e4m3_weight(parts, name, "FP8", ".weight", Scales(".weight_scale_inv", self.block))
        return e4m3_weight(parts, name, "FP8", ".weight", Scales(".weight_scale"))


def _open_fp8(settings: Settings) -> _Reader:
    settings.choice("fmt", "e4m3", ("e4m3", "float8_e4m3fn"))
    block = settings.get("weight_block_size")
    if block is None:
        return _Reader(None)
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block)):
        raise SourceError(f"is {block!r:.40}, not two sizes", file=settings.file, field=settings.label("weight_block_size"))
    return _Reader((block[0], block[1]))


def _open_modelopt(settings: Settings) -> _Reader:
    settings.choice("quant_algo", "fp8", ("fp8", "nvfp4", "fp8_per_channel_per_token"))
    return _Reader(None)


METHODS = (
    Method("FP8", ("fp8",), _open_fp8, ("activation_scheme", "modules_to_not_convert", "scale_fmt", "dequantize", "ignored_layers")),
    Method("FBGEMM FP8", ("fbgemm_fp8",), lambda _: _Reader(None), ("activation_scale_ub", "modules_to_not_convert")),
    Method(
        "ModelOpt",
        ("modelopt", "modelopt_fp4"),
        _open_modelopt,
        ("ignore", "exclude_modules", "producer", "kv_cache_scheme", "kv_cache_quant_algo", "config_groups", "group_size", "version"),
    ),
)
