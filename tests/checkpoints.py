"""Tiny random models as checkpoints, for tests of what is compiled of them."""

from __future__ import annotations

from pathlib import Path

from cupola.models import find_family


def save_tiny(folder: Path, family: str) -> Path:
    """A random model of a family's tiny configuration, in float32; always the same one. Gives its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **find_family(family).tiny)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
