"""What a model's own `generation_config.json` says of sampling."""

from __future__ import annotations

import json
from typing import Any

from cupola.runtime.artifact import GENERATION_CONFIG, Artifact
from cupola.runtime.errors import RequestError
from cupola.runtime.sampling_params import SamplingParams
from cupola.runtime.tokenizer import lists

DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # the same names there


def default_sampling_params(artifact: Artifact) -> SamplingParams:
    """What the artifact's `generation_config.json` asks for; fields that it lacks or gets wrong have their usual defaults."""
    path = artifact.path / GENERATION_CONFIG
    try:
        given = json.loads(path.read_text(encoding="utf-8")) if lists(artifact, GENERATION_CONFIG) else {}
    except (OSError, ValueError, RecursionError):
        given = {}
    if not isinstance(given, dict):
        given = {}
    chosen = {name: given[name] for name in DEFAULTS if given.get(name) is not None}
    if given.get("do_sample") is False:
        chosen["temperature"] = 0.0
    if isinstance(given.get("max_new_tokens"), int):
        chosen["max_tokens"] = given["max_new_tokens"]
    return _lenient_params(chosen)


def _lenient_params(values: dict[str, Any]) -> SamplingParams:
    """SamplingParams of the values that are valid; a model's own file must not make every request fail."""
    while True:
        try:
            return SamplingParams(**values)
        except RequestError as error:
            del values[str(error.field)]
