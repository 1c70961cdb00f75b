"""Files of Llama-3.1-8B's shape with random weights: what compiling and speed need of a large model, and nothing else.

    python -m benchmarks.large_models.models llama.gguf                        all 32 layers in Q4_0, 4.7 GB
    python -m benchmarks.large_models.models llama.gguf --layers 4             the same shapes, fewer of them
    python -m benchmarks.large_models.models folder --layers 4                 a checkpoint in bfloat16

The vocabulary has Llama 3's size too, with as many merges, since a tokenizer of that size takes its time to
convert. Its tokens are made up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

Array = npt.NDArray[Any]
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, MERGES = 4096, 14336, 32, 8, 128, 128256, 280147
_SPECIAL = 256  # tokens at the end of the vocabulary that no merge makes
_SCALE = 0.005  # of 4-bit codes: rows keep about their length
_CONFIG = Path(__file__).parents[1] / "roofline" / "llama-3.1-8b.json"


def matrices(layers: int) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Every matrix: llama.cpp's name, transformers' name and its shape."""
    yield "token_embd", "model.embed_tokens", (VOCABULARY, HIDDEN)
    kv = KV_HEADS * HEAD_DIM
    for layer in range(layers):
        for theirs, ours, shape in (
            ("attn_q", "self_attn.q_proj", (HIDDEN, HIDDEN)),
            ("attn_k", "self_attn.k_proj", (kv, HIDDEN)),
            ("attn_v", "self_attn.v_proj", (kv, HIDDEN)),
            ("attn_output", "self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("ffn_gate", "mlp.gate_proj", (WIDTH, HIDDEN)),
            ("ffn_up", "mlp.up_proj", (WIDTH, HIDDEN)),
            ("ffn_down", "mlp.down_proj", (HIDDEN, WIDTH)),
        ):
            yield f"blk.{layer}.{theirs}", f"model.layers.{layer}.{ours}", shape
    yield "output", "lm_head", (VOCABULARY, HIDDEN)


def norms(layers: int) -> Iterator[tuple[str, str]]:
    """Every norm's weight, in the same two languages."""
    for layer in range(layers):
        yield f"blk.{layer}.attn_norm", f"model.layers.{layer}.input_layernorm"
        yield f"blk.{layer}.ffn_norm", f"model.layers.{layer}.post_attention_layernorm"
    yield "output_norm", "model.norm"


def write_gguf(path: Path, layers: int, kind: Kind = Kind.Q4_0) -> None:
    """A GGUF file of `layers` layers whose matrices are blocks at random."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_fields(writer, layers)
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    for name, _, (rows, width) in matrices(layers):
        shape = (rows, width // size * num_bytes)
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.uint8), rows * shape[1], kind)
    for name, _ in norms(layers):
        writer.add_tensor_info(f"{name}.weight", (HIDDEN,), np.dtype(np.float32), 4 * HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for _, _, (rows, width) in matrices(layers):
        blocks = np.frombuffer(random.bytes(rows * width // size * num_bytes), np.uint8).reshape(-1, num_bytes).copy()
        blocks[:, :2] = np.array([_SCALE], np.float16).view(np.uint8)
        writer.write_tensor_data(blocks.reshape(rows, -1))
    for _ in norms(layers):
        writer.write_tensor_data(np.ones(HIDDEN, np.float32))
    writer.close()


def write_checkpoint(folder: Path, layers: int) -> None:
    """A checkpoint in bfloat16, a shard for each matrix, without a tokenizer."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(_CONFIG.read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), encoding="utf-8")
    random, places = np.random.default_rng(0), dict[str, str]()
    shapes = {f"{name}.weight": shape for _, name, shape in matrices(layers)} | {f"{name}.weight": (HIDDEN,) for _, name in norms(layers)}
    for number, (name, shape) in enumerate(shapes.items()):
        places[name] = f"model-{number:05d}.safetensors"
        save_file({name: _bfloat16(random, shape)}, folder / places[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")


def _bfloat16(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    import ml_dtypes

    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    return (0.02 * random.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)


def _add_fields(writer: gguf.GGUFWriter, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (VOCABULARY - _SPECIAL) + [3] * _SPECIAL)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(VOCABULARY - _SPECIAL)
    writer.add_eos_token_id(VOCABULARY - _SPECIAL + 1)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens: every byte as GPT-2 writes it, pairs of earlier tokens, special ones; merges, more than one for many tokens."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(each) for each in [*letters, *range(256, 512 - len(letters))]]
    known, merges = set(tokens), []
    random = np.random.default_rng(0)
    while len(tokens) < VOCABULARY - _SPECIAL:
        for left, right in random.random((1 << 16, 2)):
            pair = tokens[int(left * left * len(tokens))], tokens[int(right * right * len(tokens))]  # early ones are short
            whole = "".join(pair)
            if len(whole) < 16 and whole not in known and len(tokens) < VOCABULARY - _SPECIAL:
                known.add(whole)
                tokens.append(whole)
                merges.append(" ".join(pair))
    taken = set(merges)
    splits = (f"{token[:i]} {token[i:]}" for token in tokens for i in range(1, len(token)) if token[:i] in known and token[i:] in known)
    merges += [split for split in splits if split not in taken][: MERGES - len(merges)]
    return [*tokens, *(f"<|special_{i}|>" for i in range(_SPECIAL))], merges


def main() -> None:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path, help="a file that ends in .gguf, or a folder for a checkpoint in bfloat16")
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    (write_gguf if arguments.path.suffix == ".gguf" else write_checkpoint)(arguments.path, arguments.layers)


if __name__ == "__main__":
    main()
