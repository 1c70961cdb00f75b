"""Endless sequences: attention over the first tokens, the sinks, and the latest ones (StreamingLLM; Xiao et al., arXiv:2309.17453).

A model of rotary positions or ALiBi sees distances only. So a token sees the sinks right before its window, whatever lies between: when
the window moves on, the sinks run again, at the positions before it. What a token sees depends on its index alone, so a sequence gives
the same bits however it was cut into chunks, cached, preempted or swapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.errors import OptionError

MAX_POSITIONS = 2**22  # angles are computed in float32: up to here they cost SmolLM2 a thousandth of its perplexity
_HOPS = 8  # in which the tokens of a window are dropped: more hold more of it, and run the sinks more often


@dataclass(frozen=True)
class SinkWindow:
    """The tokens that sequences keep, in whole blocks.

    Attributes:
        num_sinks: the first tokens.
        window: the most of the latest tokens, the one that looks included.
        hop: how many of them are dropped at a time, the oldest; so there are always more than `window` − `hop`.
    """

    num_sinks: int
    window: int
    hop: int

    @staticmethod
    def of(num_sinks: int, window: int, block_size: int) -> SinkWindow:
        """At least so many tokens. A block of sinks of one token would be written while it is read."""
        sinks, kept = (-(-count // block_size) * block_size for count in (max(2, num_sinks), window))
        return SinkWindow(sinks, kept, max(1, kept // block_size // _HOPS) * block_size)

    @property
    def num_kept(self) -> int:
        """Tokens that a sequence holds at most."""
        return self.num_sinks + self.window

    def num_dropped(self, index: int) -> int:
        """Tokens after the sinks that the token at `index` does not see."""
        return -(-max(0, index + 1 - self.num_kept) // self.hop) * self.hop

    def num_alike(self, index: int) -> int:
        """How many tokens from `index` on see the same first token of the window."""
        return self.num_kept + self.num_dropped(index) - index

    @property
    def note(self) -> str:
        """A line for users about what is forgotten."""
        return (
            f"of a longer text the first {self.num_sinks} tokens and the latest {self.window - self.hop} to {self.window} are kept; "
            "what lies between is forgotten"
        )


def choose_sink_window(num_sinks: int | None, window: int | None, model: ModelConfig, kv: KVSpec) -> SinkWindow | None:
    """The window that `attention_sinks` and `attention_window` ask for; None if nothing.

    Raises:
        OptionError: if one is given without the other, or the model can't do it.
    """
    if window is None and num_sinks is None:
        return None
    if window is None or num_sinks is None:
        field, other = ("attention_sinks", "attention_window") if window is None else ("attention_window", "attention_sinks")
        raise OptionError(f"is of no use without {other}", field=field, fix=f"give {other} too")
    if kv.recurrent is not None:
        problem = "can't be set: this model carries a state from token to token, which can't forget the middle of a text"
        raise OptionError(problem, field="attention_window", fix="leave it out")
    if any(group.window for group in kv.groups):
        windows = ", ".join(str(group.window) for group in kv.groups if group.window)
        raise OptionError(
            f"can't be set: layers of this model have windows of their own ({windows})", field="attention_window", fix="leave it out"
        )
    if not model.relative_positions:
        problem = "can't be set: this model sees positions, not only distances between tokens"
        raise OptionError(problem, field="attention_window", fix="leave it out; if the model is rotary, compile it again")
    kept = SinkWindow.of(num_sinks, window, kv.block_size)
    if kept.num_kept > model.context_length:
        problem = f"is {window}, and with {kept.num_sinks} sinks more than the context of {model.context_length} tokens"
        raise OptionError(problem, field="attention_window", fix=f"give at most {max(1, model.context_length - kept.num_sinks)}")
    return kept
