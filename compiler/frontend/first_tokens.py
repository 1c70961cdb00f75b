"""A vocabulary projection cut to the first tokens, for small models that guess what large ones say.

Tokenizers number tokens by how often their makers' texts have them, so that the first ones are most of what is said, and what stands behind
them is read for little (FR-Spec, arXiv:2502.14856). The embedding keeps all: any token may come before a guess.
"""

from __future__ import annotations

from typing import Any

import torch

from cupola.runtime.errors import OptionError, UnsupportedError

FIELD = "draft-vocabulary"


def keep_first_tokens(model: Any, count: int, file: str) -> str:
    """Has `model` give the logits of the first `count` tokens alone; returns a note for people.

    Raises:
        OptionError: it has no more tokens than that.
        UnsupportedError: it has no projection that can be cut.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UnsupportedError("has no plain projection to its vocabulary that could be cut", file=file, field=FIELD, fix="leave it out")
    if count >= head.out_features:
        problem = f"is {count}, and the model has {head.out_features} tokens"
        raise OptionError(problem, field=FIELD, fix="give fewer: a quarter of them, say")

    def project(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, head.weight[:count], None if head.bias is None else head.bias[:count])

    head.forward = project
    return f"a draft model: it says the first {count} of {head.out_features} tokens alone"


def check_first_tokens(count: int, vocab_size: int, file: str) -> None:
    """Refuses a model whose logits, `vocab_size` of them, were not cut.

    Raises:
        UnsupportedError: it reads its projection's weight by itself.
    """
    if vocab_size != count:
        problem = f"gives logits of {vocab_size} tokens, though its projection was cut to {count}: it reads the weight by itself"
        raise UnsupportedError(problem, file=file, field=FIELD, fix="leave it out")
