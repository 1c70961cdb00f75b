"""From token ids to text, piece by piece: never half a character, never half a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from cupola.runtime.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
NUM_CONTEXT_TOKENS = 6  # enough for a decoder to see that it is not at a text's beginning
MAX_MISSING = 3  # a UTF-8 character has four bytes, so at most three wait for the rest


class IncrementalDecoder:
    """Turns a stream of token ids into the text that they add to the tokens before them.

    A decoder may treat a text's first token specially (no leading space) and a byte token by its neighbours, so new
    tokens are decoded after a few old ones, and what is new is the difference.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._window = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._settled = self._decode().rstrip(REPLACEMENT)  # the window's text that was returned before
        self._num_settled_tokens = len(self._window)

    def push(self, token_id: int) -> str:
        """The text that is sure after one more token; it may be empty."""
        self._window.append(token_id)
        text = self._decode()
        whole = text.rstrip(REPLACEMENT)
        if len(whole) == len(text):
            return self._advance(text)
        # A long run of replacements is garbage for good, but its last few may yet become a character.
        sure = text[: len(text) - min(len(text) - len(whole), MAX_MISSING)]
        if not sure.startswith(self._settled):
            return ""
        piece, self._settled = sure[len(self._settled) :], sure
        return piece

    def flush(self) -> str:
        """What was held back, at the end: bytes that never became a character are replacement characters."""
        return self._advance(self._decode())

    def _advance(self, text: str) -> str:
        piece = text[len(self._settled) :]
        if piece:  # without new text (a skipped token, a lone space) keep the context that we have
            del self._window[: self._num_settled_tokens]
            self._num_settled_tokens = len(self._window)
            self._settled = self._decode()
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip_special_tokens)


class Detokenizer:
    """The text of one completion and the stop strings that may end it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, prompt_token_ids, skip_special_tokens)
        self._stop, self._include_stop = tuple(stop), include_stop_str_in_output
        self._longest_stop = max(map(len, stop), default=0)
        self.text = ""
        self.finished = False

    @property
    def released(self) -> str:
        """The text that nothing can take back any more: it does not end in what may begin a stop string."""
        return self.text if self.finished else self.text[: len(self.text) - self._num_held()]

    def push(self, token_id: int, *, check_stop: bool = True) -> str | None:
        """Adds a token. Returns the stop string that it completes, if any; the text then ends there."""
        piece = self._decoder.push(token_id)
        self.text += piece
        return self._find_stop(len(piece)) if check_stop and piece else None

    def finish(self) -> None:
        """Adds what is left at the end of the output."""
        self.text += self._decoder.flush()
        self.finished = True

    def _find_stop(self, num_new: int) -> str | None:
        searched = max(0, len(self.text) - num_new - self._longest_stop + 1)
        found = [(at, stop) for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if not found:
            return None
        at, stop = min(found)
        self.text = self.text[: at + len(stop) if self._include_stop else at]
        self.finished = True
        return stop

    def _num_held(self) -> int:
        tail = self.text[max(0, len(self.text) - self._longest_stop + 1) :] if self._longest_stop else ""
        starts = (i for i in range(len(tail)) if any(stop.startswith(tail[i:]) for stop in self._stop))
        return len(tail) - next(starts, len(tail))
