"""Log-probabilities in OpenAI's two forms. JSON has no infinity: what is impossible is written as -9999, as vLLM does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cupola.runtime.outputs import Logprob, TokenLogprobs

IMPOSSIBLE = -9999.0


def name_by_ids(entry: TokenLogprobs) -> TokenLogprobs:
    """The entry with "token_id:5" for the text of token 5: no two have the same, and none is half a character."""
    return {i: replace(logprob, decoded_token=f"token_id:{i}") for i, logprob in entry.items()}


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int) -> dict[str, Any]:
    """A chat choice's `logprobs`; `num_top` likeliest tokens beside each chosen one."""
    content = []
    for entry in entries:
        chosen = next(iter(entry.values()))
        content.append({**_token(chosen), "top_logprobs": [_token(logprob) for logprob in _likeliest(entry, num_top)]})
    return {"content": content}


def completion_logprobs(entries: Sequence[TokenLogprobs | None], num_top: int, offset: int, first_token: str = "") -> dict[str, Any]:
    """A completion's `logprobs`; texts begin `offset` characters into the answer. What nothing predicts is a prompt's `first_token`."""
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    offsets = []
    for entry in entries:
        offsets.append(offset)
        if not entry:
            tokens.append(first_token)
            token_logprobs.append(None)
            top_logprobs.append(None)
            offset += len(first_token)
            continue
        chosen = next(iter(entry.values()))
        tokens.append(chosen.decoded_token or "")
        token_logprobs.append(_finite(chosen.logprob))
        likeliest = [chosen, *_likeliest(entry, num_top)]
        top_logprobs.append({logprob.decoded_token or "": _finite(logprob.logprob) for logprob in likeliest} if num_top else None)
        offset += len(chosen.decoded_token or "")
    return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs, "text_offset": offsets}


def prompt_logprobs(entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: token ids, as strings, to log-probability, rank and text."""
    return [
        {str(i): {"logprob": _finite(p.logprob), "rank": p.rank, "decoded_token": p.decoded_token} for i, p in entry.items()}
        if entry
        else None
        for entry in entries
    ]


def _likeliest(entry: TokenLogprobs, num_top: int) -> list[Logprob]:
    """The `num_top` likeliest of an entry, in order; -1 is all."""
    ranked = sorted(entry.values(), key=lambda logprob: logprob.rank)
    return ranked if num_top < 0 else [logprob for logprob in ranked if logprob.rank <= num_top][:num_top]


def _token(logprob: Logprob) -> dict[str, Any]:
    text = logprob.decoded_token or ""
    return {"token": text, "logprob": _finite(logprob.logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(value: float) -> float:
    return max(value, IMPOSSIBLE)
