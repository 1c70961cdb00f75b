"""The bytes that single tokens write. Characters may be cut across tokens; bytes are not."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import tokenizers

MAX_REMEMBERED = 1 << 16
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _letters() -> Iterator[tuple[str, int]]:
    """GPT-2's printable stand-ins for bytes, in which byte-level vocabularies are written."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return ((chr(byte if byte in printable else next(others)), byte) for byte in range(256))


BYTE_OF = dict(_letters())


class TokenBytes:
    """The bytes that each token of a vocabulary writes in the middle of a text, as its decoder has it.

    Attributes:
        has_fallback: whether the decoder writes a run of `<0xE4>` and the like as U+FFFD for each, unless all of them are characters.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = set(_kinds(json.loads(tokenizer.decoder.__getstate__()))) if tokenizer.decoder else set()
        self._is_byte_level, self.has_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._remembered = lru_cache(MAX_REMEMBERED)(self._find)

    def __call__(self, token_id: int) -> bytes:
        """The bytes of `token_id`; none if the tokenizer does not know it."""
        return self._remembered(token_id)

    def _find(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            found = [BYTE_OF.get(letter, -1) for letter in token]
            return token.encode() if -1 in found else bytes(found)
        if self.has_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        once, twice = (self._tokenizer.decode([token_id] * n, skip_special_tokens=False) for n in (1, 2))
        # At a text's beginning a decoder may leave out a space, after another token it doesn't.
        return str(twice[len(once) :] or once).encode()


def count_unfinished(data: bytes) -> int:
    """How many bytes at the end of `data` begin a character of UTF-8 that isn't whole yet, at most three."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])


def _kinds(decoder: dict[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)
