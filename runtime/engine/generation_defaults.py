"""The sampling defaults in a model's own `generation_config.json`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import GENERATION_CONFIG, TOKENIZER
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError

DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # the same names there


def default_sampling_params(artifact: Artifact) -> SamplingParams:
    """The artifact's `generation_config.json` as sampling parameters; fields that it lacks or gets wrong have their usual defaults."""
    return _lenient(_configured(artifact))[1]


def model_sampling(artifact: Artifact) -> dict[str, Any]:
    """The fields that the artifact's `generation_config.json` itself sets, by SamplingParams' names; empty if it sets none."""
    return {name: value for name, value in _lenient(_configured(artifact))[0].items() if name in DEFAULTS}


def _configured(artifact: Artifact) -> dict[str, Any]:
    """The fields of SamplingParams that `generation_config.json` sets, unchecked."""
    path = artifact.path / GENERATION_CONFIG
    try:
        given = json.loads(path.read_text(encoding="utf-8")) if artifact.lists(GENERATION_CONFIG) else {}
    except (OSError, ValueError, RecursionError):
        given = {}
    if not isinstance(given, dict):
        given = {}
    chosen = {name: given[name] for name in DEFAULTS if given.get(name) is not None}
    if given.get("do_sample") is False:
        chosen["temperature"] = 0.0
    if isinstance(given.get("max_new_tokens"), int):
        chosen["max_tokens"] = given["max_new_tokens"]
    if given.get("stop_strings") and artifact.lists(TOKENIZER):
        chosen["stop"] = given["stop_strings"]
    return chosen


def add_model_stops(params: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """`params` with the stop strings of the model's `defaults` beside their own: they are the model's end as its stop tokens are.

    Not where a request ignores that end, or wants no text.
    """
    if not defaults.stop_strings or params.ignore_eos or not params.detokenize:
        return params
    return replace(params, stop=tuple(dict.fromkeys((*params.stop_strings, *defaults.stop_strings))))


def _lenient(values: dict[str, Any]) -> tuple[dict[str, Any], SamplingParams]:
    """The values that are valid, and SamplingParams of them; a model's own file must not make every request fail."""
    while True:
        try:
            return values, SamplingParams(**values)
        except RequestError as error:
            if error.field not in values:
                raise
            values = {name: value for name, value in values.items() if name != error.field}
