"""CodeGen: attention of GPT-J's, queries, keys and values in one projection."""

from cupola.models.family import Family
from cupola.models.gptj import use_marker

FAMILY = Family(
    model_type="codegen",
    title="CodeGen",
    tiny={
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 8,
        "vocab_size": 256,
        "n_positions": 256,
        "n_ctx": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    attention="eager",
    adapt=use_marker,
)
