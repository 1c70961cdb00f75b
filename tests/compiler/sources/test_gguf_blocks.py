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
from cupola.compiler.sources.gguf_lattices import is_lattice
from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.ggml import GGML_FORMATS


def any_bytes(name: str, num_rows: int = 5, num_blocks: int = 3) -> np.ndarray:
    """Blocks of any bytes: scales that are no numbers or infinite are among them."""
    size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    data = np.random.default_rng(0).integers(0, 256, (num_rows, num_blocks, size)).astype("uint8")
    if name == "MXFP4":
        data[..., 0] %= 255  # the last is NaN
        data[0, 0, 0] = 0
    return data


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"Q1_0"}))
def test_every_type_is_read_bit_for_bit(name: str) -> None:
    data, (num_values, _) = any_bytes(name), gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = BLOCKS[name](data.reshape(-1), 5)
    assert blocks.format == GGML_FORMATS[name] and blocks.codes.shape == (5, 3 * num_values)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data.reshape(5, -1), GGMLQuantizationType[name])
    np.testing.assert_array_equal(blocks.values(), expected)


def test_bits_are_a_scale_or_its_negative() -> None:
    """ggml's `dequantize_row_q1_0`, for which gguf-py has no counterpart."""
    data = any_bytes("Q1_0")
    scale = np.ascontiguousarray(data[..., :2]).view("float16").astype("float32")
    bits = data[..., 2:, None] >> np.arange(8) & 1
    expected = np.where(bits.reshape(5, 3, 128), scale, -scale).reshape(5, -1)
    np.testing.assert_array_equal(BLOCKS["Q1_0"](data.reshape(-1), 5).values(), expected)


def test_a_scale_of_mxfp4_that_is_nan_is_refused() -> None:
    data = any_bytes("MXFP4")
    data[3, 1, 0] = 255
    with pytest.raises(UnsupportedError, match="MXFP4 has NaN"):
        BLOCKS["MXFP4"](data.reshape(-1), 5)


WIDER = {"MXFP4", "TQ1_0", "Q1_0", *filter(is_lattice, BLOCKS)}  # scales in 16 bits, codes in 2, and no places in lattices


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - WIDER))
def test_formats_take_up_what_the_file_does(name: str) -> None:
    num_values, num_bytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert GGML_FORMATS[name].bits_per_value == 8 * num_bytes / num_values


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


def test_other_types_have_no_blocks(write_gguf, tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path / "model.gguf", kind=GGMLQuantizationType.F16))
    assert {tensor.stored_as for tensor in source.tensors.values() if len(tensor.shape) > 1} == {"F16"}
    assert not any(tensor.blocks for tensor in source.tensors.values())
