"""Log-probabilities in OpenAI's two forms. JSON has no infinity: what is impossible is written as -9999, as vLLM does."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cupola.runtime.engine.outputs import Logprob, TokenLogprobs
from cupola.runtime.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0


@dataclass(frozen=True)
class TokenNames:
    """How tokens are called: by their texts, or as "token_id:5" if `as_ids`. `tokenizer` is None if the artifact has none."""

    tokenizer: Tokenizer | None
    as_ids: bool = False

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of the token's text."""
        return b"" if self.tokenizer is None else self.tokenizer.token_bytes(token_id)

    def text_of(self, token_id: int) -> str:
        """The token's name; bytes that are no character are replacement characters."""
        return f"token_id:{token_id}" if self.as_ids else self.bytes_of(token_id).decode("utf-8", "replace")

    def exact(self, token_id: int) -> str:
        r"""As `text_of`, but OpenAI's "bytes:\xf0\x9f" for a token that is part of a character."""
        data, text = self.bytes_of(token_id), self.text_of(token_id)
        return text if self.as_ids or text.encode() == data else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int, names: TokenNames) -> dict[str, Any]:
    """A chat choice's `logprobs`; the `num_top` most likely tokens beside each chosen one."""
    content = []
    for entry in entries:
        chosen = next(iter(entry.items()))
        top = [_token(token_id, logprob, names) for token_id, logprob in _most_likely(entry, num_top)]
        content.append({**_token(*chosen, names), "top_logprobs": top})
    return {"content": content}


class CompletionLogprobs:
    """Writes the `logprobs` of one completion as its tokens come. Offsets are those of the text that the tokens make, in characters,
    whether or not that text was sent yet; a token that goes on with a character has that character's offset.

    Args:
        num_top: most likely tokens beside each chosen one.
        skip_special_tokens: whether the completion's text has no special tokens.
    """

    def __init__(self, num_top: int, names: TokenNames, *, skip_special_tokens: bool) -> None:
        self._num_top, self._names = num_top, names
        self._skipped = names.tokenizer.special_token_ids if names.tokenizer is not None and skip_special_tokens else frozenset()
        self._decoder, self._offset = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def write(self, entries: Sequence[TokenLogprobs | None], *, num_echoed: int = 0, first_token: str = "") -> dict[str, Any]:
        """The next tokens' `logprobs`. The first `num_echoed` are a prompt's; what nothing predicts is its `first_token`."""
        tokens: list[str] = []
        token_logprobs: list[float | None] = []
        top_logprobs: list[dict[str, float] | None] = []
        offsets = []
        for i, entry in enumerate(entries):
            offsets.append(self._offset)
            if not entry:
                tokens.append(first_token)
                token_logprobs.append(None)
                top_logprobs.append(None)
                self._offset += len(first_token)
                continue
            token_id, chosen = next(iter(entry.items()))
            tokens.append(self._names.exact(token_id))
            token_logprobs.append(_finite(chosen.logprob))
            top_logprobs.append(self._top(entry) if self._num_top else None)
            if i < num_echoed or token_id not in self._skipped:
                self._offset += len(self._decoder.decode(self._names.bytes_of(token_id)))
        return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs, "text_offset": offsets}

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """By the tokens' texts; of those that share one, the less likely are named by their ids."""
        chosen = next(iter(entry.items()))
        found: dict[str, float] = {}
        for token_id, logprob in [chosen, *(other for other in _most_likely(entry, self._num_top) if other[0] != chosen[0])]:
            name = self._names.exact(token_id)
            found[f"token_id:{token_id}" if name in found else name] = _finite(logprob.logprob)
        return found


def prompt_logprobs(entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: token ids, as strings, to log-probability, rank and text."""
    return [
        {str(i): {"logprob": _finite(p.logprob), "rank": p.rank, "decoded_token": p.decoded_token} for i, p in entry.items()}
        if entry
        else None
        for entry in entries
    ]


def _most_likely(entry: TokenLogprobs, num_top: int) -> list[tuple[int, Logprob]]:
    """The `num_top` most likely tokens of an entry, in order; -1 is all."""
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)
    return ranked if num_top < 0 else [item for item in ranked if item[1].rank <= num_top][:num_top]


def _token(token_id: int, logprob: Logprob, names: TokenNames) -> dict[str, Any]:
    return {"token": names.text_of(token_id), "logprob": _finite(logprob.logprob), "bytes": list(names.bytes_of(token_id))}


def _finite(value: float) -> float:
    return max(value, IMPOSSIBLE)
