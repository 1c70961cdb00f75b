"""Generation defaults: checked, and cut to what a model's vocabulary can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cupola.runtime.errors import SourceError

MAX_STOPS, MAX_STOP_CHARACTERS = 32, 1024  # beside them a request may bring stop strings of its own
_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _ids(value: object, field: str, file: object) -> list[int]:
    ids: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise SourceError(f"is {value!r:.60}, not a token id or a list of them", file=file, field=field, fix="correct or remove the field")
    return ids


def _check_stop_strings(defaults: dict[str, Any]) -> list[str]:
    given = defaults.get("stop_strings")
    strings = [given] if isinstance(given, str) else given
    if strings is None:
        return []
    if isinstance(strings, list) and all(isinstance(each, str) for each in strings):
        defaults["stop_strings"] = [each for each in strings if 0 < len(each) <= MAX_STOP_CHARACTERS][:MAX_STOPS]
        if defaults["stop_strings"] == strings:
            return []
    else:
        del defaults["stop_strings"]
    limits = f"{MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
    return [f"stop_strings {given!r:.80} do not all stop an answer: at most {limits} are taken"]


def generation_defaults(
    given: Mapping[str, Any] | None, config: Mapping[str, Any], vocab_size: int, file: object
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of `generation_config.json`, or what `config.json` says instead, and notes on what was left out.

    Raises:
        SourceError: a token id is not a whole number.
    """
    defaults = dict(given) if given is not None else {field: config[field] for field in _TOKEN_FIELDS if config.get(field) is not None}
    notes = []
    for field in _TOKEN_FIELDS:
        if defaults.get(field) is None:
            continue
        ids = _ids(defaults[field], field, file)
        kept = [each for each in ids if 0 <= each < vocab_size]
        if kept != ids:
            notes.append(
                f"{field} {', '.join(str(each) for each in ids if each not in kept)} left out: the vocabulary has {vocab_size} tokens"
            )
            defaults[field] = kept or None
    notes += _check_stop_strings(defaults)
    return defaults, tuple(notes)
