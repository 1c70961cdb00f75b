"""Small tokenizers of the two kinds that models use: byte-level BPE, and pieces with byte fallback."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers


def byte_level() -> Tokenizer:
    """One token a byte, some merges (one of them inside a character), and a special token."""
    letters = _byte_letters()
    vocab = {letters[byte]: byte for byte in range(256)}
    merges = [(letters[a], letters[b]) for a, b in [(0x20, 0x74), (0x68, 0x65), (0xF0, 0x9F), (0xE4, 0xBD), (0xA0, 0xE5)]]
    for merge in merges:
        vocab["".join(merge)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece's way: "▁" for spaces, characters out of the vocabulary as bytes, no space before the first word."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz.!é", "▁t", "▁th", "he", "▁the"]:
        vocab[piece] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁th", "e")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for bytes, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
