"""Every verified family, through every pass before the target's kernels: what it becomes is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import tvm
from tvm import IRModule, relax

from cupola.compiler.frontend.state import kv_layout
from cupola.compiler.frontend.trace import trace
from cupola.compiler.frontend.translate import translate
from cupola.compiler.pipeline import import_passes, pipeline
from cupola.compiler.variants import lay_out_state
from cupola.models import FAMILIES, find_family
from cupola.passes.rewrite import name_of
from cupola.passes.schemes import SCHEMES
from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.state import KVSpec
from cupola.targets.base import Target
from cupola.targets.ops import Argmax, BlockMaxima, GatedLinear, Linear, PagedAttention, Sample
from tests.passes.harness import verified
from tests.turns import by_family

NO_TARGET = Target(DeviceSpec("none", "cpu", "none", "", ()), None, optional=(BlockMaxima, Argmax))

# Calls in a model: paged_attention, linear (with the logits'), gated_linear, rotary, rms_norm, layer_norm; and transposes that are left.
RECOGNIZED = {
    "llama": (2, 7, 2, 4, 5, 0, 0),
    "qwen2": (2, 7, 2, 4, 5, 0, 0),
    "qwen3": (2, 7, 2, 4, 9, 0, 0),
    "mistral": (2, 7, 2, 4, 5, 0, 0),
    "gemma2": (2, 7, 2, 4, 9, 0, 0),
    "gemma3_text": (3, 10, 3, 6, 19, 0, 0),
    "phi": (2, 9, 0, 4, 0, 3, 0),
    "phi3": (2, 7, 2, 4, 5, 0, 0),
    "gpt2": (2, 9, 0, 0, 0, 5, 0),
    "gpt_neox": (2, 9, 0, 4, 0, 5, 0),
    "opt": (2, 9, 0, 0, 0, 5, 0),
    "falcon": (2, 9, 0, 4, 0, 3, 0),
    "bloom": (2, 9, 0, 0, 0, 6, 0),
    "olmo2": (2, 7, 2, 4, 9, 0, 0),
    "granite": (2, 7, 2, 4, 5, 0, 0),
    "smollm3": (4, 13, 4, 6, 9, 0, 0),
    "cohere": (2, 7, 2, 4, 0, 3, 0),  # normalizes heads without recognized weights
    "stablelm": (2, 7, 2, 4, 0, 5, 0),
    "starcoder2": (2, 9, 0, 4, 0, 5, 0),
    "gemma": (2, 7, 2, 4, 5, 0, 0),
    "olmo": (2, 7, 2, 4, 0, 5, 0),
    "olmo3": (2, 7, 2, 4, 9, 0, 0),
    "glm": (2, 7, 2, 4, 5, 0, 0),
    "glm4": (2, 7, 2, 4, 9, 0, 0),
    "cohere2": (2, 7, 2, 2, 0, 3, 0),
    "exaone4": (2, 7, 2, 2, 9, 0, 0),
    "ernie4_5": (2, 7, 2, 4, 5, 0, 0),
    "hunyuan_v1_dense": (2, 7, 2, 4, 9, 0, 0),
    "helium": (2, 7, 2, 4, 5, 0, 0),
    "apertus": (2, 9, 0, 4, 9, 0, 0),
    "arcee": (2, 9, 0, 4, 5, 0, 0),
    "nemotron": (2, 9, 0, 4, 0, 5, 0),
    "seed_oss": (2, 7, 2, 4, 5, 0, 0),
    "ministral": (2, 7, 2, 4, 5, 0, 0),
    "bitnet": (2, 11, 0, 4, 9, 0, 0),
    "ctrl": (2, 9, 0, 0, 0, 5, 0),
    "cwm": (2, 7, 2, 4, 5, 0, 0),
    "gemma4_text": (2, 12, 2, 0, 0, 0, 0),  # its norms and rotations are written in other ways
    "gemma4_unified_text": (2, 7, 2, 0, 0, 0, 0),
    "gpt-sw3": (2, 9, 0, 0, 0, 5, 0),
    "granite_swa": (2, 7, 2, 4, 5, 0, 0),
    "hyperclovax": (2, 7, 2, 4, 9, 0, 0),
    "internlm3": (2, 7, 2, 4, 5, 0, 0),
    "iquestcoder": (2, 7, 2, 4, 5, 0, 0),
    "jais2": (2, 9, 0, 4, 0, 5, 0),
    "modernbert-decoder": (2, 8, 2, 4, 0, 6, 0),
    "nanochat": (2, 9, 0, 0, 0, 0, 12),  # norms without weights, and the halves of a head swapped
    "persimmon": (2, 9, 0, 4, 0, 9, 0),
    "phi4_multimodal": (2, 7, 2, 4, 5, 0, 0),
    "codegen": (2, 9, 0, 0, 0, 3, 0),  # interleaves what it rotates, as does GPT-J
    "gpt_neo": (2, 9, 0, 0, 0, 5, 0),
    "gptj": (2, 9, 0, 0, 0, 3, 0),
    "mpt": (2, 9, 0, 0, 0, 5, 0),
    "openai-gpt": (2, 9, 0, 0, 0, 4, 0),  # normalizes behind its layers, the last one too
    "lfm2": (1, 10, 3, 2, 9, 0, 0),
    "doge": (2, 9, 2, 4, 9, 0, 10),  # joins queries and keys with a number for each token
    "mamba2": (0, 5, 0, 0, 3, 0, 0),
    "mamba": (0, 9, 0, 0, 3, 0, 0),
    "falcon_mamba": (0, 9, 0, 0, 3, 0, 0),
    "xlstm": (0, 10, 2, 0, 5, 0, 0),
    "bamba": (1, 7, 2, 2, 5, 0, 0),
    "falcon_h1": (2, 9, 2, 4, 5, 0, 0),
    "granitemoehybrid": (1, 7, 2, 2, 5, 0, 0),
    "qwen3_5_text": (1, 8, 2, 2, 8, 0, 0),
    "vaultgemma": (2, 7, 2, 4, 5, 0, 0),
    "mixtral": (2, 7, 0, 4, 5, 0, 0),
    "qwen2_moe": (3, 12, 3, 6, 7, 0, 0),  # of the last layer router and gate are joined
    "qwen3_moe": (2, 7, 1, 4, 9, 0, 0),
    "gpt_oss": (2, 7, 0, 0, 5, 0, 12),  # rotates halves that it cuts by itself
    "olmoe": (2, 7, 0, 4, 9, 0, 0),
    "granitemoe": (2, 7, 0, 4, 5, 0, 0),
    "deepseek_v3": (2, 10, 2, 0, 9, 0, 8),  # rotates a part of each head, and every other of its numbers
    "glm4_moe": (2, 8, 2, 4, 9, 0, 0),
}
# Of mixtures: gated_expert_linear, expert_linear, top_k.
EXPERTS = {
    "mixtral": (2, 2, 2),
    "qwen2_moe": (2, 2, 2),
    "qwen3_moe": (1, 1, 1),
    "gpt_oss": (0, 4, 2),  # its gate has limits
    "olmoe": (2, 2, 2),
    "granitemoe": (2, 2, 2),
    "deepseek_v3": (1, 5, 3),  # heads of latent attention are experts to each of which all tokens go
    "glm4_moe": (1, 1, 3),  # two of a group's experts, the groups, and then the experts
}
# Keys of deepseek_v3 have one head, which looks like an axis of a batch; angles of qwen3_5_text come by three axes of positions; what
# doge joins to its queries is constant.
BATCHED = ("deepseek_v3", "qwen3_5_text", "doge")


def recognized(model_type: str) -> IRModule:
    """The module before `lower_ops`, verified after every pass on the way."""
    family = find_family(model_type)
    assert family is not None
    mod = translate(trace({"model_type": model_type, **family.tiny}, "test", 64), "test")
    for step in import_passes():
        mod = verified(step, mod)
    kv = lay_out_state(kv_layout(mod, "float32", 16, "test"), [NO_TARGET])
    for step in pipeline(NO_TARGET, kv, SCHEMES["f32"]):
        if step.info.name != "lower_ops":
            mod = verified(step, mod)
    return mod


def bindings(mod: IRModule) -> list[relax.Binding]:
    return [binding for block in mod["forward"].body.blocks for binding in block.bindings]


def calls(mod: IRModule) -> list[relax.Call]:
    return [binding.value for binding in bindings(mod) if isinstance(binding.value, relax.Call)]


def is_of_weights(mod: IRModule, call: relax.Call) -> bool:
    weights = mod["forward"].params[int(mod["forward"].attrs["num_input"]) :]
    return all(any(arg.same_as(weight) for weight in weights) for arg in call.args if isinstance(arg, relax.Var))


def test_optional_operations_are_emitted_where_they_are_implemented() -> None:
    kv = KVSpec((), "float32", 16)
    found = []
    for optional in ((), (BlockMaxima,), (Argmax,), (BlockMaxima, Argmax), (BlockMaxima, Sample), (BlockMaxima, Argmax, Sample)):
        passes = pipeline(replace(NO_TARGET, optional=optional), kv, SCHEMES["f32"])
        found.append([step.info.name for step in passes if step.info.name.startswith(("find_", "sample_"))])
    both = ["find_maxima", "find_argmax"]  # tokens are found by way of the maxima
    assert found == [[], ["find_maxima"], [], both, ["find_maxima"], [*both, "sample_tokens"]]


def test_every_family_is_counted() -> None:
    assert set(RECOGNIZED) == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("model_type", by_family(RECOGNIZED))
def test_operations_are_recognized(model_type: str) -> None:
    mod = recognized(model_type)
    assert_counts(model_type, mod)
    if model_type not in BATCHED:
        assert_no_batch_axis(mod)
    assert_no_index_is_trusted_and_no_slice_is_empty(mod)


def assert_counts(model_type: str, mod: IRModule) -> None:
    found = Counter(name_of(call) for call in calls(mod) if not (name_of(call) == "permute_dims" and is_of_weights(mod, call)))
    # Attention rotates q and k itself where that is all that happens to them.
    found["cupola.rotary"] += 2 * sum(paged.cos is not None for call in calls(mod) if (paged := PagedAttention.match(call)) is not None)
    # Linear layers normalize what they alone read.
    linears = [Linear.match(call) or GatedLinear.match(call) for call in calls(mod)]
    found["nn.rms_norm"] += sum(linear is not None and linear.norm is not None for linear in linears)
    names = (
        "cupola.paged_attention",
        "cupola.linear",
        "cupola.gated_linear",
        "cupola.rotary",
        "nn.rms_norm",
        "nn.layer_norm",
        "permute_dims",
    )
    assert {name: found[name] for name in names} == dict(zip(names, RECOGNIZED[model_type], strict=True))
    assert not found["cupola.attention"] and not found["matmul"]
    experts = ("cupola.gated_expert_linear", "cupola.expert_linear", "cupola.top_k")
    assert tuple(found[name] for name in experts) == EXPERTS.get(model_type, (0, 0, 0))


def assert_no_batch_axis(mod: IRModule) -> None:
    """Angles get an axis of 1 for the heads, by a reshape, and are then cut or repeated; nothing is computed with a batch axis."""
    moves = ("reshape", "strided_slice", "repeat", "tile")
    for call in calls(mod):
        if isinstance(call.ty, relax.TensorType) and len(call.ty.shape) > 1 and name_of(call) not in moves:
            first = call.ty.shape[0]
            assert not (isinstance(first, tvm.tirx.IntImm) and int(first) == 1), call


def assert_no_index_is_trusted_and_no_slice_is_empty(mod: IRModule) -> None:
    for call in calls(mod):
        if name_of(call) == "take":
            assert call.attrs.mode == "clip"
        if isinstance(call.ty, relax.TensorType):
            assert not any(isinstance(size, tvm.tirx.IntImm) and int(size) == 0 for size in call.ty.shape), call
