"""The options of a compile, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cupola.passes import schemes
from cupola.runtime.errors import OptionError
from cupola.targets.registry import name_targets

QUANTS = ("auto", *schemes.SCHEMES)
EMBEDDINGS = ("auto", *schemes.EMBEDDINGS)
KV_DTYPES = ("f32", "bf16", "f16", "int8", "fp8")


@dataclass(frozen=True)
class CompileOptions:
    """The options of `cupola.compile`, as `cupola compile --help` explains them.

    Attributes:
        target: what to compile for, one of `cupola.targets.registry.target_names()` or several with commas between them; perhaps with the
            system behind an `@`, as in TARGET@android.
        quant: how weights are stored and multiplied, one of QUANTS.
        embedding: how the embedding and the vocabulary projection are stored, one of EMBEDDINGS.
        kv_dtype: how K and V are stored, one of KV_DTYPES; None lets the compiler choose.
        context: tokens that a sequence may have; None is what the model was made for.
        block_size: tokens in a block of the K/V cache, a power of two.
        max_batch: sequences that one step may hold.
        os: the operating systems to compile for, with commas between them; None is this machine's.
        draft_vocabulary: how many of the first tokens the model says, which then is good for drafts alone; None are all.

    Raises:
        OptionError: naming the option and its choices.
    """

    target: str = "cpu"
    quant: str = "f32"
    embedding: str = "auto"
    kv_dtype: str | None = None
    context: int | None = None
    block_size: int = 16
    max_batch: int = 64
    os: str | None = None
    draft_vocabulary: int | None = None

    def __post_init__(self) -> None:
        name_targets(self.target, self.os)
        _check_choice("quant", self.quant, QUANTS)
        _check_choice("embedding", self.embedding, EMBEDDINGS)
        if self.kv_dtype is not None:
            _check_choice("kv-dtype", self.kv_dtype, KV_DTYPES)
        if self.context is not None:
            _check_range("context", self.context, 1, 2**24)
        _check_range("block-size", self.block_size, 1, 1024)
        if self.block_size & (self.block_size - 1):
            raise OptionError(f"is {self.block_size}, not a power of two", field="block-size", fix="take 16, 32 or 64")
        _check_range("max-batch", self.max_batch, 1, 4096)
        if self.draft_vocabulary is not None:
            _check_range("draft-vocabulary", self.draft_vocabulary, 1, 2**24)


def short_name(source: str | Path) -> str:
    """A source's name in a file name: the last part of its path, without what a shell could stumble over."""
    name = Path(source).name.removesuffix(".gguf")
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "model"


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{value!r} is unknown", field=field, fix=f"choose from {', '.join(choices)}")


def _check_range(field: str, value: int, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise OptionError(f"is {value}, not a whole number from {lowest} to {highest}", field=field, fix="give one in that range")
