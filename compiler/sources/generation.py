"""Generation defaults: checked, and cut to what a model's vocabulary can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cupola.runtime.errors import SourceError

_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _ids(value: object, field: str, file: object) -> list[int]:
    ids: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise SourceError(f"is {value!r:.60}, not a token id or a list of them", file=file, field=field, fix="correct or remove the field")
    return ids


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
    return defaults, tuple(notes)
