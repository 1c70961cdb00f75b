"""Prompts of an exact number of tokens, without a tokenizer of our own: common words, of which each is one token.

With a space before it, a common English word is a single token in most models' vocabularies (all of these are in SmolLM2's), and
tokenizers do not join over spaces. The server's `/tokenize` says which are; and it gives the ids, so that prompts can be sent as ids.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

# Tokenizes a text without adding special tokens; None if the server can't.
Tokenize = Callable[[str], Awaitable[list[int] | None]]

_TEXT = """
able act age ago air all also and any area arm art ask away back bad bank base be bear bed best big bird blue boat body book both box boy
but buy call came can car care case cat city cold come cook cost cut dark day dead deal dear deep did do dog done door down draw drop dry
each ear east easy eat edge egg else end even ever eye face fact fair fall far farm fast fear feel feet few fill find fine fire fish fit
five flat flow fly food foot for form four free from full game gas gave get girl give go gold good got gray grow had hair half hand hard
has hat have he head hear heat held help her here high hill him his hit hold hole home hope hot hour how ice idea if in iron it job join
jump just keep kind king knew know lady lake land last late law lay lead left leg less let lie life like line list live long look lost lot
love low made main make man many map mark may me mean meet men mile milk mind miss moon more most move much must my name near need new
news next nine no nose not note now of off oil old on once one only open or our out over own page pair part pass past path pay plan play
poor pull push put race rain ran read real red rest rich ride ring rise road rock room row rule run safe said sail salt same sand saw say
sea seat see seed seem self sell send set she ship shoe shop show side sign sing sit six size skin sky slow snow so soft soil some son
song soon star stay step stop such suit sun sure take talk tall team tell ten test than that the them then they this time to told too took
top town tree true try turn two type unit up us use very view wait walk wall want war warm was wash wave way we wear week well went were
west what when who why wide wife wild will wind wish with wood word work year yes yet you
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Vocabulary:
    """The words, or token ids, that prompts are made of.

    Args:
        words: for texts, with a space before each.
        ids: the server's tokens, for prompts of ids; None if it doesn't say.
        is_exact: whether each word is known to be one token.
    """

    words: tuple[str, ...] = WORDS
    ids: tuple[int, ...] | None = None
    is_exact: bool = False

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
        """Places of words, or of ids: the same for both."""
        return rng.integers(0, len(self.words), num_tokens).tolist()

    def prompt(self, drawn: list[int], as_ids: bool) -> str | list[int]:
        """The prompt of what was drawn."""
        if as_ids:
            assert self.ids is not None
            return [self.ids[place] for place in drawn]
        return "".join(f" {self.words[place]}" for place in drawn)


async def learn_words(tokenize: Tokenize) -> Vocabulary:
    """The words that are one token each on this server; all of them, unchecked, if it doesn't tokenize or hardly has any."""
    if await tokenize(" word") is None:
        return Vocabulary()
    pairs = await _single_tokens(WORDS, tokenize)
    if len(pairs) < 2:
        ids = await tokenize(" " + " ".join(WORDS))
        return Vocabulary(WORDS, tuple(ids[place % len(ids)] for place in range(len(WORDS)))) if ids else Vocabulary()
    return Vocabulary(tuple(word for word, _ in pairs), tuple(token for _, token in pairs), is_exact=True)


async def _single_tokens(words: tuple[str, ...], tokenize: Tokenize) -> list[tuple[str, int]]:
    """The words that are one token, and which. Asks about all at once, and then about halves of what has others in it."""
    ids = await tokenize(" " + " ".join(words)) or []
    if len(ids) == len(words):
        return list(zip(words, ids, strict=True))
    if len(words) == 1:
        return []
    half = len(words) // 2
    return [*await _single_tokens(words[:half], tokenize), *await _single_tokens(words[half:], tokenize)]
