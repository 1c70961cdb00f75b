"""`GET /props`: the server and its model in llama-server's terms, for clients that look there before they ask."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from cupola.runtime.engine.generation_defaults import model_sampling
from cupola.runtime.engine.sampling_params import RANDOM_SEED, SamplingParams
from cupola.runtime.server.engine_client import Health
from cupola.runtime.server.service import Service
from cupola.runtime.text.tokenizer import special_tokens


def server_props(service: Service) -> dict[str, Any]:
    """The server's properties for clients. None of them is a path of this machine."""
    artifact, template = service.artifact, service.chat_template
    tokens = special_tokens(artifact)
    length = service.max_length if service.health is Health.READY else artifact.manifest.model.context_length
    return {
        "default_generation_settings": {"n_ctx": length, "params": _defaults(service.defaults)},
        "generation_config": model_sampling(artifact),  # ours: what the model's own file sets of these
        "total_slots": service.max_num_seqs,
        "model_alias": service.config.served_model_name,
        "model_path": artifact.path.resolve().name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": "" if template is None else template.default or "",
        "bos_token": tokens.get("bos_token", ""),
        "eos_token": tokens.get("eos_token", ""),
        "build_info": f"cupola {importlib.metadata.version('cupola')}",
    }


def _defaults(params: SamplingParams) -> dict[str, Any]:
    """The parameters of a request that sets none."""
    return {
        "seed": RANDOM_SEED,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repetition_penalty,
        "repeat_last_n": params.repeat_last_n,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
    }
