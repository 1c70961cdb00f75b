"""Text comes out whole: no half characters, no lost spaces, no half stop strings."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cupola.runtime.detokenizer import Detokenizer, IncrementalDecoder
from cupola.runtime.errors import ArtifactError, RequestError
from cupola.runtime.tokenizer import Tokenizer
from tests.runtime.tokenizers_for_tests import byte_fallback, byte_level, save

TEXTS = [
    "hello the world",
    "你好，世界",
    "naïve café",
    "👩‍👩‍👧‍👦 family 🇩🇪",
    "a😀b😀😀c",
    "  two  spaces ",
    "tab\tline\n",
    "",
    "\x00",
    "é",
    "𝔘𝔫𝔦",
    "the " * 9,
]


@pytest.fixture(scope="module", params=[byte_level, byte_fallback], ids=["byte_level", "byte_fallback"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return Tokenizer(save(request.param(), tmp_path_factory.mktemp("tokenizer")))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, max_tokens=1000, add_special_tokens=False)


def pieces(tokenizer: Tokenizer, prompt: list[int], token_ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, prompt, True)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_make_the_text(tokenizer, text):
    found = pieces(tokenizer, [], encode(tokenizer, text))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("text", TEXTS)
def test_text_goes_on_where_the_prompt_ends(tokenizer, text):
    whole = encode(tokenizer, "say the " + text)
    prompt = encode(tokenizer, "say the")
    if whole[: len(prompt)] == prompt:
        assert "".join(pieces(tokenizer, prompt, whole[len(prompt) :])) == " " + text


@given(text=st.text(max_size=30))
def test_any_text(tokenizer, text):
    text = text.replace("\ufffd", "").replace("▁", "")
    found = pieces(tokenizer, [], encode(tokenizer, text))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


@given(token_ids=st.lists(st.integers(0, 261), max_size=40))
@example(token_ids=[0xF0] * 40)
@example(token_ids=[0xE4, 0xBD])
def test_any_bytes_decode_as_they_do_at_once(tmp_path_factory, token_ids):
    file = save(byte_level(), tmp_path_factory.mktemp("tokenizer"))
    tokenizer = Tokenizer(file)
    assert "".join(pieces(tokenizer, [], token_ids)) == tokenizer.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 291), max_size=40))
def test_any_fallback_bytes_are_survived(tmp_path_factory, token_ids):
    tokenizer = Tokenizer(save(byte_fallback(), tmp_path_factory.mktemp("tokenizer")))
    found = "".join(pieces(tokenizer, [], token_ids))
    valid = tokenizer.decode(token_ids)
    if "\ufffd" not in valid:
        assert found == valid


def test_garbage_does_not_pile_up(tokenizer):
    first = 0xF0 if tokenizer.token(0) != "<unk>" else 0xF1
    found = pieces(tokenizer, [], [first] * 30)
    assert sum(map(len, found[:-1])) >= 27 - 3


def test_special_tokens_are_skipped_or_shown(tokenizer):
    end = next(i for i in range(400) if tokenizer.token(i) == "<end>")
    token_ids = [*encode(tokenizer, "a"), end, *encode(tokenizer, "b")[-1:]]
    for skip, expected in [(True, "ab"), (False, "a<end>b")]:
        decoder = IncrementalDecoder(tokenizer, [], skip)
        assert "".join([*(decoder.push(i) for i in token_ids), decoder.flush()]) == expected
    assert tokenizer.special_tokens == ("<end>",)


def run(tokenizer: Tokenizer, text: str, stop: list[str], *, include: bool = False) -> tuple[str, str | None, list[str]]:
    detokenizer = Detokenizer(tokenizer, [], stop, include_stop_str_in_output=include)
    seen = []
    for token_id in encode(tokenizer, text):
        found = detokenizer.push(token_id)
        seen.append(detokenizer.released)
        if found is not None:
            return detokenizer.released, found, seen
    detokenizer.finish()
    return detokenizer.released, None, [*seen, detokenizer.released]


@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("one. two", ["."], "one", "."),
        ("abc the end", [" the"], "abc", " the"),
        ("你好，世界", ["世"], "你好，", "世"),
        ("x😀y", ["😀"], "x", "😀"),
        ("ababac", ["abac"], "ab", "abac"),
        ("abc", ["c", "abc"], "", "abc"),  # the stop string that begins first
        ("abcd", ["bcx", "cd"], "ab", "cd"),
        ("no stop her", ["here"], "no stop her", None),
        ("aa", ["aaa"], "aa", None),
    ],
)
def test_stop_strings(tokenizer, text, stop, expected, found):
    final, stopped, seen = run(tokenizer, text, stop)
    assert (final, stopped) == (expected, found)
    assert all(final.startswith(piece) for piece in seen), "text was taken back"
    if found:
        assert run(tokenizer, text, stop, include=True)[0] == expected + found


@given(text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_any_stop_string(tokenizer, text, stop):
    final, found, seen = run(tokenizer, text, stop)
    assert all(final.startswith(piece) for piece in seen), "text was taken back"
    if found is None:
        assert final == text
        assert not any(s in text for s in stop)
    else:
        assert text.startswith(final + found)
        assert not any(s in final for s in stop)


def test_held_text_is_as_short_as_can_be(tokenizer):
    detokenizer = Detokenizer(tokenizer, [], ["xyz"])
    for token_id in encode(tokenizer, "abxy"):
        detokenizer.push(token_id)
    assert detokenizer.released == "ab"
    detokenizer.push(encode(tokenizer, "a")[-1])
    assert detokenizer.released == "abxya"


def test_bad_text_is_refused(tokenizer):
    with pytest.raises(RequestError, match="surrogate at character 1"):
        encode(tokenizer, "a\ud800")
    with pytest.raises(RequestError, match="characters"):
        encode(tokenizer, "a" * 10**6)


def test_a_damaged_tokenizer_is_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ArtifactError, match="tokenizer.json"):
        Tokenizer(file)
