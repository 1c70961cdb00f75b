"""Text comes out whole: no half characters, no lost spaces, no half stop strings."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cupola.runtime.errors import ArtifactError, RequestError
from cupola.runtime.text.detokenizer import Detokenizer, IncrementalDecoder
from cupola.runtime.text.stop_strings import StopStrings
from cupola.runtime.text.tokenizer import Tokenizer
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


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    first = 0 if tokenizer.token(0) != "<unk>" else 1
    return [first + byte for byte in data]


@pytest.mark.parametrize("text", ["a\ufffd", "\ufffd", "\ufffd\ufffd\ufffd\ufffd"])
def test_a_replacement_character_is_a_character(tokenizer, text):
    prompt = byte_tokens(tokenizer, text.encode())
    assert pieces(tokenizer, prompt, encode(tokenizer, "the")[-1:]) == [tokenizer.token_text(encode(tokenizer, "the")[-1]), ""]
    decoder = IncrementalDecoder(tokenizer, byte_tokens(tokenizer, b"a"), True)
    assert "".join(decoder.push(i) for i in prompt) == text  # nothing waits for more


@pytest.mark.parametrize("text", ["你", "🧿", "你好你好", "naïve🧿"])
def test_characters_that_the_prompt_begins_are_ended(tokenizer, text):
    data = text.encode()
    for cut in range(1, 3):
        assert "".join(pieces(tokenizer, byte_tokens(tokenizer, data[:-cut]), byte_tokens(tokenizer, data[-cut:]))) == text[-1]


def test_a_token_costs_the_same_whatever_came_before(tokenizer, monkeypatch):
    decoded, decode = [], Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, **more: decoded.append(len(ids)) or decode(self, ids, **more))
    end, letters = next(iter(tokenizer.special_token_ids)), encode(tokenizer, "the")
    nothing = 10**6  # a token that the tokenizer does not know
    for row in (letters[-1:], [end], byte_tokens(tokenizer, b"\xbf"), byte_tokens(tokenizer, b"\xf0\x9f"), [nothing]):
        detokenizer = Detokenizer(tokenizer, letters)
        decoded.clear()
        for i in range(400):
            detokenizer.push(row[i % len(row)])
        assert sum(decoded) < 400 * 24 and max(decoded, default=0) < 24, row


def test_special_tokens_are_skipped_or_shown(tokenizer):
    end = next(i for i in range(400) if tokenizer.token(i) == "<end>")
    token_ids = [*encode(tokenizer, "a"), end, *encode(tokenizer, "b")[-1:]]
    for skip, expected in [(True, "ab"), (False, "a<end>b")]:
        decoder = IncrementalDecoder(tokenizer, [], skip)
        assert "".join([*(decoder.push(i) for i in token_ids), decoder.flush()]) == expected
    assert tokenizer.special_tokens == ("<end>",)


def run(tokenizer: Tokenizer, text: str, stop: list[str], *, include: bool = False) -> tuple[str, str | None, list[str]]:
    detokenizer = Detokenizer(tokenizer, [], StopStrings(stop), include_stop_str_in_output=include)
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


@given(
    pushes=st.lists(st.text("ab", max_size=5), max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=5),
)
def test_stop_strings_are_found_as_by_looking_everywhere(pushes, stop):
    strings, text, held = StopStrings(stop), "", 0
    for new in pushes:
        text += new
        found = [(at, s) for s in stop for at in range(len(text)) if text.startswith(s, at)]
        ends = [(at, s) for at, s in found if at + len(s) > len(text) - len(new)]
        assert strings.find(text, len(new), held) == (min(ends) if ends else None)
        if ends:
            return
        held = strings.find_held(text, held)
        assert held == next((i for i in range(len(text)) if any(s.startswith(text[i:]) for s in stop)), len(text))


def test_a_shorter_stop_string_that_came_too_early_is_not_found_later(tokenizer):
    detokenizer = Detokenizer(tokenizer, [], StopStrings(["ab", "x" * 40]))
    for token_id in encode(tokenizer, "ab"):
        assert detokenizer.push(token_id, check_stop=False) is None  # as before `min_tokens`
    assert detokenizer.push(encode(tokenizer, "c")[-1]) is None
    assert detokenizer.released == "abc"


@pytest.mark.parametrize(
    ("stops", "letter"),
    [
        (["\x01" + f"{i:02}" + "x" * 1021 for i in range(64)], "x"),
        (["a" * 1000 + f"{i:02}" + "a" * 22 for i in range(64)], "a"),  # long rows are held, and each may end one
        ([f"{i:02}" + "a" * 1022 for i in range(64)], "a"),
    ],
)
def test_many_long_stop_strings_cost_a_few_comparisons_a_character(stops, letter):
    strings, text, held, num_calls = StopStrings(stops), letter * 2000, 0, 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for length in range(1, len(text) + 1):
            assert strings.find(text[:length], 1, held) is None
            held = strings.find_held(text[:length], held)
    finally:
        sys.setprofile(None)
    assert num_calls < 30 * len(text)


def test_held_text_is_as_short_as_can_be(tokenizer):
    detokenizer = Detokenizer(tokenizer, [], StopStrings(["xyz"]))
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
