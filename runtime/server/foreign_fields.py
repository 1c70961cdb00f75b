"""Fields that requests bring and that no route here has: which are ignored, which are refused, and by which other names a field goes.

OpenAI refuses a field that it doesn't know, vLLM and llama-server ignore it. Here a field is ignored only if it can't change the answer:
a typing error, or a sampler that isn't there, would otherwise give an answer that nobody asked for. Clients send many fields that say
"as usual": those values are let pass.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cupola.runtime.errors import RequestError

MAX_NAME_CHARACTERS = 60  # of a field's name in an error

# They say who asks, how the server may go about it, or what it may keep or tell beside the answer.
IGNORED = frozenset(
    {
        # OpenAI's
        "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
        "access_programs", "include_obfuscation", "max_tool_calls", "prompt_cache_options",
        # Anthropic's
        "anthropic_version", "betas", "cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id", "workspace_id",
        # vLLM's; what concerns beam search has no effect without it
        "early_stopping", "guided_decoding_backend", "length_penalty", "media_io_kwargs", "mm_processor_kwargs", "request_id",
        "spaces_between_special_tokens",
        # llama-server's
        "api_key", "backend_sampling", "cache_prompt", "id_slot", "n_discard", "n_keep", "return_progress", "slot_id", "sse_ping_interval",
        "timings_per_token",
        # the setting of a sampler that is refused if it is switched on
        "smoothing_curve",
    }
)  # fmt: skip

# Other names of fields. `json_schema` and `grammar` have theirs in `structured.py`.
ALIASES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "mirostat_mode": "mirostat",
    "n_predict": "max_tokens",
    "nsigma": "top_n_sigma",
    "repeat_penalty": "repetition_penalty",
    "stopping_strings": "stop",
    "typical": "typical_p",
}


@dataclass(frozen=True)
class Refusal:
    """A known field that would change the answer: the values that do not, beside null, and what to do instead."""

    neutral: tuple[object, ...] = ()
    fix: str = "leave it out"


REFUSED: Mapping[str, Refusal] = {
    # OpenAI's
    "audio": Refusal(fix="leave it out: only text is generated"),
    "function_call": Refusal(fix="use tool_choice"),
    "functions": Refusal(fix="use tools"),
    "modalities": Refusal((["text"],), 'give ["text"], or leave it out'),
    "background": Refusal((False,)),
    "context_management": Refusal(([],), "leave it out, and shorten the conversation yourself"),
    "conversation": Refusal(fix="use previous_response_id"),
    "moderation": Refusal(),
    "verbosity": Refusal(("medium",)),
    "web_search_options": Refusal(),
    # Anthropic's
    "container": Refusal(fix="leave it out: no code is run here"),
    "mcp_servers": Refusal(([],), "give functions as tools, and call the servers yourself"),
    # vLLM's
    "chat_template_kwargs": Refusal(({},)),
    "documents": Refusal(([],)),
    "guided_whitespace_pattern": Refusal(),
    "include_reasoning": Refusal((True,)),
    "kv_transfer_params": Refusal(({},)),
    "logits_processors": Refusal(([],)),
    "logprob_token_ids": Refusal(([],), "use logprobs"),
    "reasoning_effort": Refusal(),
    "repetition_detection": Refusal(),
    "thinking_token_budget": Refusal((-1,)),
    "truncation_side": Refusal(("left",), "leave it out: the beginning is cut off"),
    "use_beam_search": Refusal((False,), "leave it out, or use LLM.beam_search"),
    "vllm_xargs": Refusal(({},)),
    # llama-server's, and what its clients send
    "adaptive_target": Refusal((-1,)),
    "banned_strings": Refusal(([], ""), "use bad_words"),
    "dynamic_temperature": Refusal((False,)),
    "epsilon_cutoff": Refusal((0,)),
    "eta_cutoff": Refusal((0,)),
    "guidance_scale": Refusal((1,)),
    "image_data": Refusal(([],), "leave it out: only text is read"),
    "lora": Refusal(([],)),
    "min_keep": Refusal((0, 1)),
    "n_cmpl": Refusal((1,), "use n"),
    "n_indent": Refusal((0,)),
    "n_probs": Refusal((0,), "use logprobs"),
    "negative_prompt": Refusal(("",)),
    "no_repeat_ngram_size": Refusal((0,)),
    "parse_tool_calls": Refusal((True,)),
    "penalize_nl": Refusal((False,)),
    "post_sampling_probs": Refusal((False,)),
    "reasoning_format": Refusal(("auto", "deepseek")),
    "response_fields": Refusal(([],)),
    "return_tokens": Refusal((False,), "use return_token_ids"),
    "smoothing_factor": Refusal((0,)),
    "t_max_predict_ms": Refusal((0, -1)),
    "tfs_z": Refusal((1,)),
    "top_a": Refusal((0,)),
    # Ollama's and Hugging Face's
    "do_sample": Refusal((True,), "give temperature 0 for the most likely tokens"),
    "num_predict": Refusal(fix="use max_tokens"),
    "options": Refusal(({},), "give each option as a field of the request"),
    "parameters": Refusal(({},), "give each parameter as a field of the request"),
}


def settle_fields(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """A request's fields without those that are null or ignored, and with others' names translated.

    Args:
        known: the names of the fields that the request may have.

    Raises:
        RequestError: naming a field that is refused.
    """
    settled = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in known:
            settled[name] = value
        elif name not in IGNORED and ALIASES.get(name) not in known:
            _refuse(name, value, known)
    for alias, name in ALIASES.items():
        value = given.get(alias)
        if alias in known or name not in known or value is None:
            continue
        if settled.get(name, value) != value:
            raise RequestError(f"is {value!r:.60}, and {name} is {settled[name]!r:.60}", field=alias, fix=f"give {name} alone")
        settled[name] = value
    return settled


def _refuse(name: str, value: object, known: Collection[str]) -> None:
    """Raises RequestError unless `value` changes nothing."""
    refusal = REFUSED.get(name)
    field = name if name.isidentifier() and len(name) <= MAX_NAME_CHARACTERS else f"{name!a:.60}"
    if refusal is None:
        similar = difflib.get_close_matches(name[:MAX_NAME_CHARACTERS], known, n=1, cutoff=0.75)
        fix = f"did you mean {similar[0]}?" if similar else "leave it out, or start the server with --ignored-fields"
        raise RequestError("is not known here, and might change the answer", field=field, fix=fix)
    if value not in refusal.neutral:
        raise RequestError(f"is {value!r:.60}, which is not supported", field=field, fix=refusal.fix)
