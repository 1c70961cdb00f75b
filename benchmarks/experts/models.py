"""Mixtures of experts of real models' shapes as GGUF files, with random weights and few layers: what speed needs, and nothing else.

    python -m benchmarks.experts.models qwen3-30b-a3b --layers 8 --out qwen3.gguf

Matrices are Q4_0, the experts of GPT-OSS MXFP4; norms, routers and biases float32. The vocabulary is small, so that the embedding and the
logits take the share of a step that they have among all of the model's layers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from benchmarks.experts.shapes import MODELS, VOCABULARY, Model

Array = npt.NDArray[Any]


def write(model: Model, layers: int, path: Path) -> None:
    """The file."""
    writer = gguf.GGUFWriter(path, model.architecture)
    model.add_fields(writer, layers)
    _add_tokenizer(writer)
    arrays: list[tuple[str, tuple[int, ...], Kind]] = []
    random = np.random.default_rng(0)
    for name, shape, kind in model.tensors(layers):
        size, each = gguf.GGML_QUANT_SIZES[kind]
        stored = shape if kind == Kind.F32 else (*shape[:-1], shape[-1] // size * each)
        dtype = np.dtype(np.float32 if kind == Kind.F32 else np.uint8)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kind)
        arrays.append((name, stored, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, stored, kind in arrays:
        writer.write_tensor_data(_values(random, name, stored, kind))
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    units = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's bytes as characters
    units += range(256, 512 - len(units))
    letters = [chr(unit) for unit in units]
    pair = letters[0] + letters[1]
    tokens = [*letters, pair, *(f"<{number}>" for number in range(VOCABULARY - len(letters) - 2)), "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)


def _values(random: np.random.Generator, name: str, stored: tuple[int, ...], kind: Kind) -> Array:
    """Random codes under one scale, such that rows keep about their length; norms are ones, and states decay."""
    if kind == Kind.F32:
        if "norm" in name or name.endswith(("ssm_a", "ssm_d")):
            return np.full(stored, -1.0 if name.endswith("ssm_a") else 1.0, np.float32)
        return (0.02 * random.standard_normal(stored)).astype(np.float32)
    each = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (int(np.prod(stored)) // each, each), np.uint8)
    if kind == Kind.MXFP4:
        blocks[:, 0] = 119  # 2^-8, of numbers up to 6
    else:
        blocks[:, :2] = np.array([0.005], np.float16).view(np.uint8)
    return blocks.reshape(stored)


def main() -> None:
    """Writes the model that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(MODELS[arguments.model], arguments.layers, arguments.out)


if __name__ == "__main__":
    main()
