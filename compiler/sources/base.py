"""The interface through which every source gives the compiler a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cupola.targets.formats.format import WeightFormat

if TYPE_CHECKING:
    from cupola.targets.formats.tensor import QuantizedTensor

Array = npt.NDArray[Any]
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
"""What a model's parameters may come in; a checkpoint may hold tensors of other types that no parameter takes."""


@dataclass(frozen=True)
class LazyTensor:
    """A weight that is read only when asked for.

        `load` returns a C-contiguous array of `shape` whose dtype is `dtype` ("float32", "float16" or "bfloat16", the
        latter as `ml_dtypes.bfloat16`); it may be a read-only view of a mapped file. `stored_as` is the file's own name of the
    type, such as BF16 or Q4_1. Where those are blocks that a weight format of cupola's holds, `format` names it, and `blocks` returns
    them as they are: their values are those of `load`, bit for bit (but see `gguf_blocks` for Q4_K); `block_rows` some rows of them,
    where that does not take reading all. Where groups are not made of neighbouring columns, column j of the blocks is column order[j] of
    the tensor. Of a tensor with three axes they are those of its matrices, one above the other; `is_turned`: of matrices that lie the
    other way round in the tensor. One that is stacked of others has those as `slabs`, and one that is made of others has their `names`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]
    stored_as: str = ""
    format: WeightFormat | None = None
    blocks: Callable[[], QuantizedTensor] | None = None
    slabs: tuple[LazyTensor, ...] = ()
    names: tuple[str, ...] = ()
    order: Array | None = field(default=None, compare=False)  # i32 [K]
    is_turned: bool = False
    block_rows: Callable[[Array], QuantizedTensor] | None = field(default=None, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes that `load` will hand out."""
        return int(np.prod(self.shape, dtype=np.int64)) * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True)
class Source:
    """A model as it was found: its configuration, its weights by their transformers names, its tokenizer.

    Attributes:
        name: the path or name that the user gave.
        format: "huggingface", "gguf", or "config" of a configuration alone, without values of weights.
        hash: gives `sha256`, perhaps after a while.
        config: the content of transformers' `config.json` (for GGUF, derived from its metadata).
        tensors: the weights, named as in transformers' checkpoints.
        tokenizer_json: the content of `tokenizer.json`, or None if the model has no tokenizer.
        chat_templates: the Jinja texts by name; "default" is for every chat, "tool_use" for chats with tools.
        special_tokens: the texts of the tokens that templates know by name, such as `bos_token`.
        generation_config: the content of `generation_config.json`, or {}.
        notes: for people: what was assumed or converted.
        quantized_by: the method that quantized the checkpoint's weights, for people; "": none, or they are GGUF's blocks.
        license: the licence that the source states, its name in the first line; "" if it states none.
    """

    name: str
    format: str
    hash: Callable[[], str]
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    tokenizer_json: str | None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quantized_by: str = ""
    license: str = ""

    @property
    def sha256(self) -> str:
        """A hash over all the content that the artifact depends on."""
        return self.hash()
