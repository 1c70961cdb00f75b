"""Blocks of GGUF files, handed out as they are: gguf-py's own dequantization says what they stand for, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from cupola.compiler.sources import Source, open_source
from cupola.compiler.sources.gguf_blocks import BLOCKS
from cupola.compiler.sources.gguf_header import GGUFHeader, read_header


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"Q4_K"}))
def test_every_type_is_read_bit_for_bit(name: str) -> None:
    kind = GGMLQuantizationType[name]
    random = np.random.default_rng(0)
    # Any bytes but for the scales, which must be numbers.
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = random.integers(0, 256, (5, 3, size)).astype("uint8")
    data[:, :, :4] = random.normal(size=(5, 3, 2)).astype("float16").view("uint8")
    blocks = BLOCKS[name](data.reshape(-1), 5)
    assert blocks.codes.shape == (5, 96) and blocks.scales.shape == (5, 3)
    np.testing.assert_array_equal(blocks.values(), gguf.dequantize(data.reshape(5, -1), kind))


def test_codes_of_q4_k_are_kept_and_scales_rounded_to_float16() -> None:
    kind, random = GGMLQuantizationType.Q4_K, np.random.default_rng(0)
    data = random.integers(0, 256, (5, 3, 144)).astype("uint8")
    data[:, :, :4] = random.uniform(1e-4, 1e-2, (5, 3, 2)).astype("float16").view("uint8")
    blocks = BLOCKS["Q4_K"](data.reshape(-1), 5)
    assert blocks.codes.shape == (5, 768) and blocks.scales.shape == blocks.mins.shape == (5, 24)
    scale, lowest = (np.repeat(abs(tensor.astype("float64")), 32, axis=1) for tensor in (blocks.scales, blocks.mins))
    off = abs(blocks.values() - gguf.dequantize(data.reshape(5, -1), kind))
    assert (off <= 2.0**-11 * (15 * scale + lowest) + 1e-6).all()


ROWS = 1000  # that are compared; all of q's, k's and down's
NAMES = {
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", "Q4_1", 9),
    "blk.29.attn_k.weight": ("model.layers.29.self_attn.k_proj.weight", "Q4_1", 3),
    "blk.7.ffn_down.weight": ("model.layers.7.mlp.down_proj.weight", "Q4_1", None),
    "token_embd.weight": ("model.embed_tokens.weight", "Q8_0", None),
}


@pytest.fixture(scope="module")
def source(smollm2: Path) -> Source:
    return open_source(smollm2)


@pytest.fixture(scope="module")
def header(smollm2: Path) -> GGUFHeader:
    return read_header(smollm2)


@pytest.mark.parametrize("theirs", NAMES)
def test_a_real_file_keeps_its_blocks_in_the_order_of_the_checkpoint(theirs: str, source: Source, header: GGUFHeader) -> None:
    ours, kind, heads = NAMES[theirs]
    info = next(tensor for tensor in header.tensors if tensor.name == theirs)
    data = header.data[info.begin : info.begin + info.num_bytes].reshape(info.shape[0], -1)
    values = gguf.dequantize(data[:ROWS], GGMLQuantizationType[kind])
    if heads is not None:
        values = LlamaTensorProcessor()._reverse_permute_weights(values, heads, heads)
    tensor = source.tensors[ours]
    assert tensor.stored_as == info.type_name == kind and tensor.blocks is not None
    np.testing.assert_array_equal(tensor.blocks().in_order(np.arange(len(values))).values(), values)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.Q5_1])
def test_other_types_have_no_blocks(kind: GGMLQuantizationType, write_gguf, tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path / "model.gguf", kind=kind))
    assert {tensor.stored_as for tensor in source.tensors.values() if len(tensor.shape) > 1} == {kind.name}
    assert not any(tensor.blocks for tensor in source.tensors.values())
