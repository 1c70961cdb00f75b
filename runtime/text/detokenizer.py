"""From token ids to text, piece by piece: never half a character, never half a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from cupola.runtime.text.stop_strings import StopStrings
from cupola.runtime.text.token_bytes import count_unfinished
from cupola.runtime.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
NUM_CONTEXT_TOKENS = 6  # enough for a decoder to see that it is not at a text's beginning
MAX_CHARACTER_TOKENS = 4  # a UTF-8 character has at most four bytes
MAX_SILENT_TOKENS = 8  # that may still show something together with the next one
CONTINUATIONS = {bytes([byte]) for byte in range(0x80, 0xC0)}
NO_STOPS = StopStrings()


class IncrementalDecoder:
    """Turns a stream of token ids into the text that they add to the tokens before them.

    A decoder may treat a text's first token specially (no leading space) and a byte token by its neighbours, so new
    tokens are decoded after a few old ones, and what is new is the difference. These tokens are a bounded number, whatever comes.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._has_fallback = tokenizer.token_bytes.has_fallback
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._window = self._context_of(prompt_token_ids)
        text, num_held = self._decode()
        num_waiting = num_held if self._has_fallback else 0
        self._num_settled_tokens = len(self._window) - num_waiting
        # The window's text that was returned before, or is the prompt's.
        self._settled = self._text_of(self._window[:-num_waiting]) if num_waiting else text[: len(text) - num_held]

    def push(self, token_id: int) -> str:
        """The text that is sure after one more token; it may be empty."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text, num_held = self._decode()
        return self._advance_before(num_held) if num_held and self._has_fallback else self._advance(text, num_held)

    def flush(self) -> str:
        """The text that was held back, at the end: bytes that never became a character are replacement characters."""
        return self._advance(self._decode()[0], 0)

    def _advance_before(self, num_waiting: int) -> str:
        """The new text before the last byte tokens: a run of them reads as nothing but replacements until its last character is whole."""
        waiting = self._window[-num_waiting:]
        del self._window[-num_waiting:]
        piece = self._advance(self._text_of(self._window), 0) if len(self._window) > self._num_settled_tokens else ""
        self._window += waiting
        return piece

    def _advance(self, text: str, num_held: int) -> str:
        """The window's new text but for the last `num_held` characters; it is settled then."""
        piece = text[len(self._settled) : len(text) - num_held]
        if not text.startswith(self._settled):  # byte tokens that are no characters make replacements of those before them, too
            piece = self._text_of(self._window[self._num_settled_tokens :])
        if piece:  # without new text (a lone space) keep the context that we have
            del self._window[: self._num_settled_tokens]
            self._num_settled_tokens = len(self._window)
            text = self._text_of(self._window)
            self._settled = text[: len(text) - num_held]
        elif len(self._window) > self._num_settled_tokens + MAX_SILENT_TOKENS:
            del self._window[self._num_settled_tokens]
        return piece

    def _context_of(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The prompt's last tokens, beginning with a whole character."""
        start = max(0, len(prompt_token_ids) - NUM_CONTEXT_TOKENS)
        while start > 0 and self._tokenizer.token_bytes(prompt_token_ids[start])[:1] in CONTINUATIONS:
            start -= 1
        return list(prompt_token_ids[start:])

    def _decode(self) -> tuple[str, int]:
        """The window's text, and how many replacement characters at its end may yet become a character."""
        text = self._text_of(self._window)
        if not text.endswith(REPLACEMENT):
            return text, 0
        token_bytes = self._tokenizer.token_bytes
        num_bytes = count_unfinished(b"".join(map(token_bytes, self._window[-MAX_CHARACTER_TOKENS:])))
        return text, num_bytes if self._has_fallback else min(num_bytes, 1)

    def _text_of(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class Detokenizer:
    """The text of one completion and the stop strings that may end it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        stop: StopStrings = NO_STOPS,
        *,
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, prompt_token_ids, skip_special_tokens)
        self._stop, self._include_stop = stop, include_stop_str_in_output
        self._held_from = 0  # with stop strings: from there on the text may be part of one
        self.text = ""
        self.finished = False

    @property
    def released(self) -> str:
        """The text that nothing can take back any more: it does not end in what may begin a stop string."""
        return self.text if self.finished or not self._stop else self.text[: self._held_from]

    def push(self, token_id: int, *, check_stop: bool = True) -> str | None:
        """Adds a token. Returns the stop string that it completes, if any; the text then ends there."""
        piece = self._decoder.push(token_id)
        self.text += piece
        return self._check_stop(len(piece), check_stop) if self._stop and piece else None

    def finish(self) -> None:
        """Adds what is left at the end of the output."""
        self.text += self._decoder.flush()
        self.finished = True

    def _check_stop(self, num_new: int, may_stop: bool) -> str | None:
        found = self._stop.find(self.text, num_new, self._held_from) if may_stop else None
        if found is None:
            self._held_from = self._stop.find_held(self.text, self._held_from)
            return None
        at, stop = found
        self.text = self.text[: at + len(stop) if self._include_stop else at]
        self.finished = True
        return stop
