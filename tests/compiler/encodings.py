"""A file's tensors, and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from tvm import relax, tirx

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.gguf_blocks import BLOCKS
from cupola.compiler.weights import PackedWeight, lift_weights
from cupola.passes.quantize_weights import quantize_weights
from cupola.passes.schemes import scheme_of
from cupola.targets import ops
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.ggml import GGML_FORMATS
from cupola.targets.formats.tensor import QuantizedTensor
from tests.passes.harness import verified


class File:
    """Tensors as a GGUF file would hold them, and how often each was read, as floats and as blocks."""

    def __init__(self, kinds: dict[str, str], shape: tuple[int, int] = (48, 96)) -> None:
        self.reads: list[str] = []
        self.values: dict[str, np.ndarray] = {}
        self.tensors = {name: self._tensor(name, kind, shape) for name, kind in kinds.items()}

    def _tensor(self, name: str, kind: str, shape: tuple[int, int]) -> LazyTensor:
        random = np.random.default_rng(len(self.values))
        weight, ggml_type = random.normal(size=shape).astype("float32"), GGMLQuantizationType[kind]
        try:
            data = gguf.quantize(weight, ggml_type)
        except NotImplementedError:  # the library only reads it
            data = valid_blocks(kind, random, shape)
        self.values[name] = BLOCKS[kind](data.reshape(-1), shape[0]).values() if kind == "Q1_0" else gguf.dequantize(data, ggml_type)

        def load() -> np.ndarray:
            self.reads.append(f"{name} floats")
            return self.values[name]

        def blocks() -> QuantizedTensor:
            self.reads.append(f"{name} blocks")
            return BLOCKS[kind](data.reshape(-1), shape[0])

        return LazyTensor(name, shape, "float32", load, kind, GGML_FORMATS.get(kind), blocks if kind in BLOCKS else None)


def valid_blocks(kind: str, random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Any bytes whose scales are numbers: no word of 16 bits has all bits of float16's exponent."""
    values, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    data = random.integers(0, 256, (shape[0], shape[1] // values * size)).astype("uint8")
    return data & 0xBF


def packed(file: File, groups: Sequence[Sequence[str]], quant: str, embedding: str = "auto") -> list[PackedWeight]:
    """The weights of a model that has a linear layer for each group of joined tensors, the last one its embedding too."""
    builder = relax.BlockBuilder()
    n = relax.Var("tokens", relax.TensorType([tirx.Var("n", "int64")], "int32"))
    params = {name: relax.Var(name, relax.TensorType(tensor.shape, "float32")) for name, tensor in file.tensors.items()}
    with builder.function("forward", [n, *params.values()], {"num_input": 1}):
        with builder.dataflow():
            x = builder.emit(relax.op.take(params[groups[-1][0]], n, axis=0, mode="clip"))
            out = []
            for group in groups:
                weight = params[group[0]] if len(group) == 1 else builder.emit(relax.op.concat([params[name] for name in group], axis=0))
                ty = relax.TensorType([x.ty.shape[0], weight.ty.shape[0]], "float32")
                out.append(builder.emit(ops.Linear(x, weight, None, None, "").emit(ty)))
            result = builder.emit_output(relax.Tuple(out))
        builder.emit_func_output(result)
    formats = {name: tensor.stored_as for name, tensor in file.tensors.items()}
    mod = verified(quantize_weights(scheme_of(quant, embedding), formats), builder.get())
    mod = verified(relax.transform.EliminateCommonSubexpr(), mod)
    return list(lift_weights(mod, file.tensors)[1])


def stored(weights: Sequence[PackedWeight], *names: str, group_size: int = 32) -> QuantizedTensor:
    """The numbers that are stored for the weight that is made of these tensors."""
    codes, scales, *mins = (weight.compute() for weight in weights if {each.name for each in weight.encodings} == set(names))
    form = WeightFormat(8 if codes.dtype == np.int8 else 4, group_size, zero_point="mins" if mins else "none")
    return QuantizedTensor(form, codes, scales, *mins)
