"""compressed-tensors, the format of LLM Compressor and vLLM.

`config_groups` say by module how weights are quantized, and `format` how they are stored:
pack-quantized: weight_packed i32 [N, ⌈K / (32 / bits)⌉] from the lowest bits up, codes offset to be unsigned; weight_zero_point alike
along N; int-quantized: weight i8 [N, K]; float-quantized: weight E4M3 [N, K];
nvfp4-pack-quantized, mxfp4-pack-quantized: weight_packed u8 [N, K / 2] of E2M1, the low half of a byte first, in groups of 16 or 32.
weight_scale is of the tensor, of rows, of groups or of blocks; where there is a weight_global_scale, it is divided by that. With
act-order, weight_g_idx says which group a column is of. A weight is scale · (code − zero).
https://github.com/neuralmagic/compressed-tensors/tree/main/src/compressed_tensors/compressors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import column_order, group_size_of, integer_tensor, integers, quantized, unpack
from cupola.compiler.sources.checkpoints.float_codes import Scales, e2m1_weight, e4m3_weight
from cupola.runtime.errors import SourceError, UnsupportedError
from cupola.targets.formats.tensor import QuantizedTensor

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)
# Letters, ranges of digits, choices of names in parentheses that nothing repeats, and at most four repetitions.
_PATTERN = re.compile(r"re:\^?(?=(?:[^*+]*[*+]){0,4}[^*+]*$)(?:[\w.-]|\\[.d]|\[[\w-]+\]|[*+]|\(\??:?[\w.|-]+\)(?![*+?]))+\$?")
_CLASSES = {"Linear", "Embedding"}
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class _Scheme:
    """How weights of some modules are quantized."""

    targets: tuple[str, ...]
    bits: int
    kind: str
    strategy: str
    group_size: int
    block: tuple[int, int]

    def names(self, module: str) -> bool:
        """True if it is for a module by its name; else it may be by its class."""
        patterns = (target.removeprefix("re:") for target in self.targets if target.startswith("re:"))
        return module.endswith(self.targets) or any(re.match(pattern, module) for pattern in patterns)


@dataclass(frozen=True)
class _Reader:
    schemes: tuple[_Scheme, ...]
    beside: Mapping[str, str]
    marks: tuple[str, ...] = (".weight_packed", ".weight_scale")
    parts: tuple[str, ...] = (
        ".weight", ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_global_scale", ".weight_g_idx", ".weight_shape"
    )  # fmt: skip
    result: str = ".weight"

    def read(self, parts: Parts) -> LazyTensor:
        scheme = self.scheme_of(parts)
        name = parts.name + self.result
        if parts.get(".weight_packed") is not None and scheme.kind == "float":
            return e2m1_weight(parts, name, "FP4", ".weight_packed", ".weight_scale", ".weight_global_scale", divides=True)
        if scheme.kind == "float":
            return e4m3_weight(parts, name, "FP8", ".weight", Scales(".weight_scale", scheme.block if scheme.strategy == "block" else None))
        return self.integers(parts, scheme, name)

    def scheme_of(self, parts: Parts) -> _Scheme:
        """The scheme that names the module, or else the first that names its class."""
        by_name = (scheme for scheme in self.schemes if scheme.names(parts.name))
        found = next(by_name, None) or next((scheme for scheme in self.schemes if _CLASSES.intersection(scheme.targets)), None)
        if found is None:
            raise parts.damaged("", "is quantized, and no target in config_groups names it")
        return found

    def integers(self, parts: Parts, scheme: _Scheme, name: str) -> LazyTensor:
        bits, middle = scheme.bits, 1 << scheme.bits - 1
        packed, (n, k) = parts.get(".weight_packed"), self.shape(parts, scheme)
        size = group_size_of(k, scheme.group_size if scheme.strategy == "group" else 0)
        block_rows, block_columns = scheme.block if scheme.strategy == "block" else (1, size)
        size = block_columns if scheme.strategy == "block" else size
        groups = -(-k // size)
        scale = parts.need(".weight_scale", FLOATS)
        rows = 1 if scheme.strategy == "tensor" else -(-n // block_rows)
        if int(np.prod(scale.shape)) != rows * groups:
            raise parts.damaged(".weight_scale", f"has the shape {list(scale.shape)}, not [{rows}, {groups}]")
        zeros = self.zeros(parts, scheme, (rows, groups))
        is_symmetric = zeros is None or bool((zeros == middle).all())
        form = integers(bits, size, scale, has_zeros=not is_symmetric)
        order = self.order(parts, k, size)
        block_rows = n if rows == 1 else block_rows

        def by_row(values: Array) -> Array:
            return np.repeat(values.reshape(rows, groups), block_rows, axis=0)[:n]

        def blocks() -> QuantizedTensor:
            if packed is not None:
                codes = unpack(packed.load(), bits)[:, :k]
            else:
                codes = parts.tensors[".weight"].load().view(np.uint8) + np.uint8(middle)
            codes = codes if order is None else codes[:, order]
            return integer_tensor(form, codes, by_row(scale.load()), middle if is_symmetric or zeros is None else by_row(zeros))

        return quantized(name, (n, k), f"int{bits}", form, blocks, order)

    def shape(self, parts: Parts, scheme: _Scheme) -> tuple[int, int]:
        if parts.get(".weight_packed") is None:
            n, k = parts.need(".weight", ["I8"], [None, None]).shape
            return n, k
        per_word = 32 // scheme.bits
        n, words = parts.need(".weight_packed", ["I32"], [None, None]).shape
        stated = parts.need(".weight_shape", ["I32", "I64"], [2]).load()
        if int(stated[0]) != n or -(-int(stated[1]) // per_word) != words:
            raise parts.damaged(".weight_shape", f"is {stated.tolist()}, which {n} rows of {words} words of {scheme.bits} bits are not")
        return n, int(stated[1])

    def zeros(self, parts: Parts, scheme: _Scheme, shape: tuple[int, int]) -> Array | None:
        """Of codes offset to be unsigned."""
        found, middle = parts.get(".weight_zero_point"), 1 << scheme.bits - 1
        if found is None:
            return None
        if found.stored_as == "I32" and parts.get(".weight_packed") is not None:
            words = parts.need(".weight_zero_point", ["I32"], [-(-shape[0] // (32 // scheme.bits)), shape[1]]).load()
            return unpack(np.ascontiguousarray(words.T), scheme.bits).T[: shape[0]]
        values = parts.need(".weight_zero_point", ["I8"]).load()
        if values.size != shape[0] * shape[1]:
            raise parts.damaged(".weight_zero_point", f"has the shape {list(values.shape)}, not {list(shape)}")
        return values.reshape(shape).view(np.uint8) + np.uint8(middle)

    def order(self, parts: Parts, width: int, size: int) -> Array | None:
        g_idx = parts.get(".weight_g_idx")
        if g_idx is None:
            return None
        groups = parts.need(".weight_g_idx", ["I32", "I64"], [width]).load()
        if (groups == -1).all():  # as it was initialized: columns are in order
            return None
        try:
            return column_order(groups, size)
        except ValueError:
            raise parts.damaged(".weight_g_idx", f"does not make groups of {size}") from None


def _scheme(settings: Settings, label: str, group: Any) -> _Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise SourceError("says nothing of weights", file=settings.file, field=settings.label(label))
    inner = Settings(weights, settings.file)
    bits, kind = inner.whole("num_bits", 8), inner.choice("type", "int", ("int", "float"))
    size = inner.whole("group_size", -1, lowest=-1)
    strategy = inner.choice("strategy", "group" if size > 0 else "channel", _STRATEGIES)
    if (kind, bits) not in (*(("int", bits) for bits in range(2, 9)), ("float", 8), ("float", 4)):
        raise inner.refused("num_bits", f"{bits} of {kind}", ("int of 2 to 8", "float of 4 and 8"))
    block = inner.get("block_structure", (128, 128))
    if isinstance(block, str):
        block = [int(part) for part in block.lower().split("x")] if re.fullmatch(r"\d+[xX]\d+", block) else ()
    if not (isinstance(block, list | tuple) and len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block)):
        raise SourceError(f"is {block!r:.40}, not two sizes", file=settings.file, field=settings.label(f"{label}.block_structure"))
    return _Scheme(_targets(settings, label, group.get("targets", ["Linear"])), bits, kind, strategy, size, (block[0], block[1]))


def _targets(settings: Settings, label: str, targets: Any) -> tuple[str, ...]:
    """Names, classes, and patterns that nobody can make take long: a configuration may come from anyone."""
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise SourceError(f"is {targets!r:.60}, not a list of names", file=settings.file, field=settings.label(f"{label}.targets"))
    for target in targets:
        if target.startswith("re:") and not _PATTERN.fullmatch(target):
            problem = f"has {target!r:.60}, which is no simple regular expression"
            raise UnsupportedError(problem, file=settings.file, field=settings.label(f"{label}.targets"), fix="name the modules")
    return tuple(targets)


def _open(settings: Settings) -> _Reader:
    settings.choice("format", "pack-quantized", _FORMATS)
    for name in ("sparsity_config", "transform_config"):
        value = settings.record(name)
        if value and value.get("format", "") != "dense" and (name != "transform_config" or value.get("config_groups")):
            raise UnsupportedError(
                "asks for what cupola does not do to weights", file=settings.file, field=settings.label(name), fix="give a dense checkpoint"
            )
    groups = settings.record("config_groups")
    schemes = tuple(_scheme(settings, f"config_groups.{label}", group) for label, group in groups.items())
    if not schemes:
        raise SourceError("is missing or empty", file=settings.file, field=settings.label("config_groups"))
    return _Reader(schemes, dict(_BESIDE))


_BESIDE = {
    ".input_scale": "scales of activations",
    ".input_zero_point": "scales of activations",
    ".input_global_scale": "scales of activations",
    ".output_scale": "scales of activations",
    ".k_scale": "scales of the K/V cache",
    ".v_scale": "scales of the K/V cache",
}

METHODS = (
    Method(
        "compressed-tensors",
        ("compressed-tensors",),
        _open,
        ("ignore", "quantization_status", "global_compression_ratio", "kv_cache_scheme", "version", "run_compressed"),
    ),
)
