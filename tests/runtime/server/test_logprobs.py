"""Log-probabilities name tokens by the bytes that they write, and offsets by the text that these make."""

from __future__ import annotations

import pytest

from cupola.runtime.engine.outputs import Logprob, TokenLogprobs
from cupola.runtime.server.logprobs import CompletionLogprobs, TokenNames, chat_logprobs
from cupola.runtime.text.tokenizer import Tokenizer
from tests.runtime.tokenizers_for_tests import byte_fallback, byte_level, save

SMILE = [0xF0, 0x9F, 0x98, 0x80]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(save(byte_level(), tmp_path_factory.mktemp("tokenizer")))


def entry(*token_ids: int) -> TokenLogprobs:
    """The first is chosen; all are ranked as they come."""
    return {token_id: Logprob(-float(rank), rank) for rank, token_id in enumerate(token_ids, 1)}


def write(tokenizer: Tokenizer | None, *entries: TokenLogprobs, num_top: int = 0) -> dict:
    return CompletionLogprobs(num_top, TokenNames(tokenizer), skip_special_tokens=True).write(entries)


def test_parts_of_a_character_have_its_bytes(tokenizer):
    content = chat_logprobs([entry(byte, ord("a")) for byte in SMILE], 2, TokenNames(tokenizer))["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "😀"
    assert [token["top_logprobs"][1]["bytes"] for token in content] == [[97]] * 4


def test_most_likely_tokens_of_one_text_are_all_told(tokenizer):
    top = write(tokenizer, entry(*SMILE), num_top=4)["top_logprobs"][0]
    assert top == {r"bytes:\xf0": -1.0, r"bytes:\x9f": -2.0, r"bytes:\x98": -3.0, r"bytes:\x80": -4.0}
    unknown = write(tokenizer, entry(1000, 1001, 1002), num_top=3)["top_logprobs"][0]
    assert unknown == {"": -1.0, "token_id:1001": -2.0, "token_id:1002": -3.0}
    assert len(write(None, entry(1, 2, 3), num_top=3)["top_logprobs"][0]) == 3


def test_offsets_count_characters_and_not_tokens(tokenizer):
    end = next(iter(tokenizer.special_token_ids))
    tokens = [ord("a"), *SMILE, ord("b"), end, ord("c"), 0x9F, ord("d")]
    expected = [0, 1, 1, 1, 1, 2, 3, 3, 4, 5]  # the end is not shown; a byte that is no character is, as one
    assert write(tokenizer, *map(entry, tokens))["text_offset"] == expected
    writer = CompletionLogprobs(0, TokenNames(tokenizer), skip_special_tokens=True)
    assert [writer.write([entry(token)])["text_offset"][0] for token in tokens] == expected


def test_a_token_of_pieces_has_its_space(tmp_path):
    tokenizer = Tokenizer(save(byte_fallback(), tmp_path))
    token_ids = tokenizer.encode("the the é", max_tokens=9, add_special_tokens=False)
    written = write(tokenizer, *map(entry, token_ids))
    assert "".join(written["tokens"]) == " the the é"
    assert written["text_offset"] == [sum(map(len, written["tokens"][:i])) for i in range(len(token_ids))]
