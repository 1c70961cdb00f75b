"""Weights as quantized checkpoints store them, with the values that the formats' own arithmetic gives, in float64.

Each writer quantizes a matrix coarsely (nobody asks how well) and lays it out as the library does; what a library computes in float16 is
computed exactly here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = dict[str, Array]  # by the end of the name
E4M3, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
# https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/functional.py, create_normal_map and get_4bit_type
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / 12


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        settings: its quantization_config.
        write: a weight [N, K] -> the tensors that store it, and its values.
        optional: parts without which it is another sound checkpoint.
        metadata: of the file, for a weight's name.
        format: of the blocks of a weight of 64 columns; "": it has none.
    """

    settings: dict[str, Any]
    write: Callable[[Array], tuple[Tensors, Array]]
    format: str
    optional: tuple[str, ...] = ()
    metadata: Callable[[str], dict[str, str]] = field(default=lambda name: {})


def by_groups(weight: Array, size: int, bits: int, *, asymmetric: bool, dtype: Any = np.float16) -> tuple[Array, Array, Array]:
    """Codes [N, K] from 0 up, scales and zeros [N, groups]."""
    n, k = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -k % size))).reshape(n, -1, size).astype(np.float64)
    top, middle = (1 << bits) - 1, 1 << bits - 1
    if asymmetric:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = np.maximum((high - low) / top, 1e-4).astype(dtype)
        zeros = np.clip(np.rint(-low / scales.astype(np.float64)), 1, top - 1).astype(np.uint8)
    else:
        scales = np.maximum(abs(groups).max(-1) / (middle - 0.5), 1e-4).astype(dtype)
        zeros = np.full(scales.shape, middle, np.uint8)
    codes = np.clip(np.rint(groups / scales.astype(np.float64)[..., None]) + zeros[..., None], 0, top).astype(np.uint8)
    return codes.reshape(n, -1)[:, :k], scales, zeros


def values(codes: Array, scales: Array, zeros: Array | float, groups: Array) -> Array:
    """scale · (code − zero), each column's group given."""
    zero = zeros[:, groups].astype(np.float64) if isinstance(zeros, np.ndarray) else zeros
    return scales[:, groups].astype(np.float64) * (codes.astype(np.float64) - zero)


def packed(codes: Array, bits: int) -> Array:
    """[rows, n] -> i32 [rows, ⌈n · bits / 32⌉], a stream of bits from the lowest up."""
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 32 if 32 % bits else -codes.shape[1] % (32 // bits))))
    flags = (codes[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(codes), -1)
    return np.packbits(flags, axis=1, bitorder="little").view(np.int32)


def gptq(bits: int = 4, size: int = 32, *, asymmetric: bool = False, act_order: bool = False, offset: int = 1) -> Callable[..., Any]:
    def write(weight: Array) -> tuple[Tensors, Array]:
        k = weight.shape[1]
        width = k if size < 0 else size
        groups = np.arange(k) // width
        if act_order:
            groups = np.random.default_rng(k).permutation(groups)  # of layers that share inputs, the same
        order = np.argsort(groups, kind="stable")
        sorted_codes, scales, zeros = by_groups(weight[:, order], width, bits, asymmetric=asymmetric)
        codes = np.empty_like(sorted_codes)
        codes[:, order] = sorted_codes
        stored = zeros - np.uint8(offset) & np.uint8((1 << bits) - 1)
        tensors = {".qweight": packed(codes, bits).T, ".qzeros": packed(stored.T.astype(np.uint8), bits), ".scales": scales.T,
                   ".g_idx": groups.astype(np.int32)}  # fmt: skip
        return tensors, values(codes, scales, zeros, groups)

    return write


def awq(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, zeros = by_groups(weight, 32, 4, asymmetric=True)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's packing_utils: what column the next four bits are of

    def pack(columns: Array) -> Array:  # [rows, N]
        return packed(columns.reshape(len(columns), -1, 8)[:, :, order].reshape(len(columns), -1), 4)

    tensors = {".qweight": pack(codes.T), ".qzeros": pack(zeros.T), ".scales": scales.T}
    return tensors, values(codes, scales, zeros, np.arange(weight.shape[1]) // 32)


def pack_quantized(bits: int, size: int, *, asymmetric: bool = False, act_order: bool = False) -> Callable[..., Any]:
    def write(weight: Array) -> tuple[Tensors, Array]:
        n, k = weight.shape
        width = size or k
        groups = np.arange(k) // width
        if act_order:
            groups = np.random.default_rng(k).permutation(groups)
        order = np.argsort(groups, kind="stable")
        sorted_codes, scales, zeros = by_groups(weight[:, order], width, bits, asymmetric=asymmetric, dtype=BF16)
        codes = np.empty_like(sorted_codes)
        codes[:, order] = sorted_codes
        tensors = {".weight_packed": packed(codes, bits), ".weight_scale": scales, ".weight_shape": np.array([n, k])}
        if asymmetric:
            tensors[".weight_zero_point"] = packed(np.ascontiguousarray(zeros.T), bits).T
        if act_order:
            tensors[".weight_g_idx"] = groups.astype(np.int32)
        return tensors, values(codes, scales, zeros, groups)

    return write


def int_quantized(weight: Array, *, asymmetric: bool = False) -> tuple[Tensors, Array]:
    codes, scales, zeros = by_groups(weight, weight.shape[1], 8, asymmetric=asymmetric, dtype=BF16)
    tensors = {".weight": (codes - np.uint8(128)).view(np.int8), ".weight_scale": scales}
    if asymmetric:
        tensors[".weight_zero_point"] = (zeros - np.uint8(128)).view(np.int8)
    return tensors, values(codes, scales, zeros, np.zeros(weight.shape[1], int))


def fp8(weight: Array, rows: int, columns: int, dtype: Any = np.float32) -> tuple[Array, Array, Array]:
    """E4M3 [N, K], scales of blocks, values."""
    n, k = weight.shape
    blocks = np.pad(weight, ((0, -n % rows), (0, -k % columns))).reshape(-(-n // rows), rows, -(-k // columns), columns)
    scales = (abs(blocks).max((1, 3)) / 448).astype(dtype)
    wide = scales.astype(np.float64).repeat(rows, 0)[:n].repeat(columns, 1)[:, :k]
    codes = (weight / wide).astype(E4M3)
    return codes, scales, codes.astype(np.float64) * wide


def block_fp8(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, expected = fp8(weight, 48, 32)
    return {".weight": codes, ".weight_scale_inv": scales}, expected


def row_fp8(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, expected = fp8(weight, 1, weight.shape[1])
    return {".weight": codes, ".weight_scale": scales}, expected


def tensor_fp8(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, expected = fp8(weight, *weight.shape, dtype=BF16)
    return {".weight": codes, ".weight_scale": scales.reshape(1), ".input_scale": np.array([0.5], np.float32)}, expected


def e2m1(groups: Array, scales: Array) -> Array:
    """The codes of the nearest values: u8 of the shape of groups."""
    return abs(groups[..., None] / scales[..., None, None] - E2M1).argmin(-1).astype(np.uint8)


def halves(codes: Array) -> Array:
    return codes[..., ::2] | codes[..., 1::2] << 4


def nvfp4(weight: Array, *, divides: bool) -> tuple[Tensors, Array]:
    n, k = weight.shape
    groups = weight.reshape(n, -1, 16).astype(np.float64)
    unit = np.float32(abs(weight).max() / 6 / 448)
    scales = np.maximum(abs(groups).max(-1) / 6 / unit, 2**-6).astype(E4M3)
    factor = np.float32(1 / unit) if divides else unit
    whole = scales.astype(np.float64) / factor if divides else scales.astype(np.float64) * factor
    codes = e2m1(groups, whole)
    expected = (E2M1[codes] * whole[..., None]).reshape(n, k)
    raw = halves(codes.reshape(n, k))
    if divides:
        return {".weight_packed": raw, ".weight_scale": scales, ".weight_global_scale": factor.reshape(1)}, expected
    return {".weight": raw, ".weight_scale": scales, ".weight_scale_2": factor.reshape(())}, expected


def bnb_4bit(kind: str, *, nested: bool) -> Callable[..., Any]:
    table = {"nf4": NF4, "fp4": FP4}[kind]

    def write(weight: Array) -> tuple[Tensors, Array]:
        size, count = 64, 4
        blocks = np.pad(weight.reshape(-1), (0, -weight.size % size)).reshape(-1, size)
        absmax = abs(blocks).max(1).astype(np.float32)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": list(weight.shape)}
        tensors: Tensors = {".weight.quant_map": table}
        if nested:
            entries, offset = np.linspace(-1, 1, 256).astype(np.float32), float(absmax.mean())
            padded = np.pad(absmax - offset, (0, -len(absmax) % count)).reshape(-1, count)
            units = np.maximum(abs(padded).max(1), 1e-3).astype(np.float32)
            found = abs((padded / units[:, None]).reshape(-1)[: len(absmax), None] - entries).argmin(1).astype(np.uint8)
            tensors |= {".weight.absmax": found, ".weight.nested_absmax": units, ".weight.nested_quant_map": entries}
            state |= {"nested_blocksize": count, "nested_dtype": "float32", "nested_offset": offset}
            scales = entries[found].astype(np.float64) * units.repeat(count)[: len(found)] + offset
        else:
            tensors[".weight.absmax"], scales = absmax, absmax.astype(np.float64)
        codes = abs((blocks / np.maximum(scales, 1e-9)[:, None])[..., None] - table).argmin(-1).astype(np.uint8)
        flat = codes.reshape(-1)[: weight.size]
        tensors[".weight"] = (flat[::2] << 4 | flat[1::2])[:, None]
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        expected = (table[codes].astype(np.float64) * scales[:, None]).reshape(-1)[: weight.size].reshape(weight.shape)
        return tensors, expected

    return write


def bnb_int8(weight: Array) -> tuple[Tensors, Array]:
    scb = abs(weight).max(1).astype(np.float32)
    codes = np.rint(weight / scb[:, None] * 127).astype(np.int8)
    expected = codes * (scb.astype(np.float64) / 127)[:, None]
    return {".weight": codes, ".SCB": scb, ".weight_format": np.zeros((), np.uint8)}, expected


def hqq(bits: int, axis: int) -> Callable[..., Any]:
    def write(weight: Array) -> tuple[Tensors, Array]:
        size = 32
        groups = weight.reshape(-1, size) if axis == 1 else weight.reshape(size, -1)
        low, high = groups.min(axis, keepdims=True), groups.max(axis, keepdims=True)
        scale = np.maximum((high - low) / ((1 << bits) - 1), 1e-4).astype(np.float16)
        zero = (-low / scale.astype(np.float32)).astype(np.float16)
        codes = np.clip(np.rint(groups / scale.astype(np.float64) + zero), 0, (1 << bits) - 1).astype(np.int32)
        expected = ((codes - zero.astype(np.float64)) * scale.astype(np.float64)).reshape(weight.shape)
        per_word = 10 if bits == 3 else 8 // bits
        rows = np.pad(codes, ((0, -len(codes) % per_word), (0, 0))).reshape(per_word, -1, codes.shape[1])
        top = 27 if bits == 3 else 8 - bits
        words = sum(part << top - bits * i for i, part in enumerate(rows))  # BitPack: the first part is in the highest bits
        meta = {"nbits": bits, "group_size": size, "axis": axis, "view_as_float": 0, "quant_scale": 0, "quant_zero": 0}
        tensors: Tensors = {f".{name}": np.array(value, np.int32) for name, value in meta.items()}
        tensors |= {".W_q": words.astype(np.int32 if bits == 3 else np.uint8), ".scale": scale, ".zero": zero,
                    ".shape": np.array(weight.shape, np.int64)}  # fmt: skip
        return tensors, expected

    return write


def torchao_int4(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, zeros = by_groups(weight, 32, 4, asymmetric=True, dtype=BF16)
    lows = (-scales.astype(np.float64) * (zeros.astype(np.float64) - 8)).astype(BF16)  # what the code 0, of -8 to 7, stands for
    signed = (codes - np.uint8(8)).view(np.int8)
    groups = np.arange(weight.shape[1]) // 32
    expected = signed * scales[:, groups].astype(np.float64) + lows[:, groups].astype(np.float64)
    raw = (signed[:, ::2] & 15 | signed[:, 1::2] << 4).view(np.int8)
    return {"._weight_qdata": raw, "._weight_scale": scales.T, "._weight_zero_point": lows.T}, expected


def torchao_int8(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, zeros = by_groups(weight, weight.shape[1], 8, asymmetric=True, dtype=np.float32)
    tensors = {"._weight_qdata": (codes - np.uint8(128)).view(np.int8), "._weight_scale": scales,
               "._weight_zero_point": (zeros - np.uint8(128)).view(np.int8)}  # fmt: skip
    return tensors, values(codes, scales, zeros, np.zeros(weight.shape[1], int))


def torchao_float8(weight: Array) -> tuple[Tensors, Array]:
    codes, scales, expected = fp8(weight, 1, weight.shape[1])
    return {"._weight_qdata": codes, "._weight_scale": scales}, expected


def torchao(kind: str, block: int) -> Callable[[str], dict[str, str]]:
    return lambda name: {name: json.dumps({"_type": kind, "_data": {"block_size": [1, block]}})}


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def of_gptq(**settings: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, **settings}


_HQQ_META = (".axis", ".group_size", ".view_as_float", ".quant_scale", ".quant_zero")
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_AO = {"quant_method": "torchao", "quant_type": {"default": {}}}
KINDS = {
    "gptq": Kind(of_gptq(), gptq(), "w4g32", (".g_idx",)),
    "gptq asymmetric": Kind(of_gptq(sym=False, checkpoint_format="gptq"), gptq(asymmetric=True), "w4g32z", (".g_idx",)),
    "gptq act-order": Kind(of_gptq(desc_act=True), gptq(act_order=True, asymmetric=True), "w4g32z", (".g_idx",)),
    "gptq v2, 3 bits": Kind(of_gptq(bits=3, checkpoint_format="gptq_v2"), gptq(3, asymmetric=True, offset=0), "w4g32z", (".g_idx",)),
    "gptq 2 bits": Kind(of_gptq(bits=2), gptq(2), "w4g32", (".g_idx",)),
    "gptq 8 bits, rows": Kind(of_gptq(bits=8, group_size=-1), gptq(8, -1), "w8g64", (".g_idx",)),
    "awq": Kind({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq, "w4g32z"),
    "compressed-tensors w4a16": Kind(
        compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}), pack_quantized(4, 32), "w4g32-bf16"
    ),
    "compressed-tensors w4a16, zeros, act-order": Kind(
        compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False, "actorder": "group"}),
        pack_quantized(4, 32, asymmetric=True, act_order=True), "w4g32z-bf16", (".weight_zero_point", ".weight_g_idx"),
    ),
    "compressed-tensors w8a16": Kind(
        compressed("pack-quantized", {"num_bits": 8, "strategy": "channel"}), pack_quantized(8, 0), "w8g64-bf16"
    ),
    "compressed-tensors w8a8": Kind(compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}), int_quantized, "w8g64-bf16"),
    "compressed-tensors w8a8, zeros": Kind(
        compressed("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        lambda weight: int_quantized(weight, asymmetric=True), "w8g64z-bf16", (".weight_zero_point",),
    ),
    "compressed-tensors fp8": Kind(
        compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        tensor_fp8, "w8g64-e4m3-bf16", (".input_scale",),
    ),
    "compressed-tensors nvfp4": Kind(
        compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
        lambda weight: nvfp4(weight, divides=True), "w4g16-e2m1-f32",
    ),
    "fp8 of blocks": Kind({"quant_method": "fp8", "weight_block_size": [48, 32]}, block_fp8, "w8g32-e4m3-f32"),
    "fbgemm fp8": Kind({"quant_method": "fbgemm_fp8"}, row_fp8, "w8g64-e4m3-f32"),
    "modelopt nvfp4": Kind(
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}, lambda weight: nvfp4(weight, divides=False), "w4g16-e2m1-f32"
    ),
    "bitsandbytes nf4": Kind(_BNB, bnb_4bit("nf4", nested=False), "w4g64-nf4-f32"),
    "bitsandbytes nf4, nested": Kind(_BNB | {"bnb_4bit_use_double_quant": True}, bnb_4bit("nf4", nested=True), "w4g64-nf4-f32"),
    "bitsandbytes fp4": Kind(_BNB | {"bnb_4bit_quant_type": "fp4"}, bnb_4bit("fp4", nested=False), ""),
    "bitsandbytes int8": Kind({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb_int8, "w8g64-f32", (".weight_format",)),
    "hqq": Kind({"quant_method": "hqq", "quant_config": {}}, hqq(4, 1), "w4g32m-f32", _HQQ_META),
    "hqq 3 bits": Kind({"quant_method": "hqq", "quant_config": {}}, hqq(3, 1), "w4g32m-f32", _HQQ_META),
    "hqq axis 0": Kind({"quant_method": "hqq"}, hqq(8, 0), "", _HQQ_META),
    "torchao int4": Kind(_AO, torchao_int4, "w4g32m-f32", metadata=torchao("Int4Tensor", 32)),
    "torchao int8": Kind(_AO, torchao_int8, "w8g64z-f32", ("._weight_zero_point",), torchao("Int8Tensor", 64)),
    "torchao float8": Kind(_AO, torchao_float8, "w8g64-e4m3-f32", metadata=torchao("Float8Tensor", 64)),
    "autoround": Kind(
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq", "sym": False},
        gptq(asymmetric=True), "w4g32z", (".g_idx",),
    ),
    "autoround awq": Kind(
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}, awq, "w4g32z"
    ),
}  # fmt: skip
