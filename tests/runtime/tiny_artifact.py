"""A real artifact of a tiny model: its K/V pages hold token ids, its one weight says how tokens follow each other."""

from __future__ import annotations

import platform
from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
from tvm import relax
from tvm.script import tirx as T

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import extract_plan
from cupola.runtime.artifact.folder import Artifact, sha256_of
from cupola.runtime.artifact.manifest import (
    CHAT_TEMPLATE,
    FORMAT_VERSION,
    GENERATION_CONFIG,
    LIBRARY,
    MANIFEST,
    PLAN,
    DeviceSpec,
    FileSpec,
    LibrarySpec,
    Limits,
    Manifest,
    ModelConfig,
    SourceSpec,
)
from cupola.runtime.artifact.state import KVGroup, KVSpec
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec, WeightSpec
from cupola.runtime.device.weights import map_weights
from cupola.targets.registry import get_target
from tests.runtime.tokenizers_for_tests import byte_level, save

VOCAB, BLOCK, CONTEXT = 264, 4, 64
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"


def reference_logits(weight: np.ndarray, token_ids: list[int]) -> np.ndarray:
    """f32 [n, vocab]: each token adds its row of `weight`, halved for every token since."""
    state, rows = np.zeros(VOCAB), []
    for token_id in token_ids:
        state = state / 2 + weight[token_id].astype(np.float64)
        rows.append(state)
    return np.array(rows, np.float32)


def follow_of(artifact: Artifact) -> np.ndarray:
    """The artifact's one weight."""
    weight = map_weights(artifact)["follow"]
    return weight.view(ml_dtypes.bfloat16) if artifact.manifest.weights[0].dtype == "bfloat16" else weight


def make_artifact(
    folder: Path,
    *,
    dtype: str = "float32",
    offset: int = 64,
    with_tokenizer: bool = True,
    seed: int = 0,
    context: int = CONTEXT,
    template: str = TEMPLATE,
    weight: np.ndarray | None = None,
) -> Artifact:
    """Compiles and writes the artifact; `dtype` is the pages' and the weight's, `offset` the weight's place in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    module = plan_memory(_module(dtype))
    extracted = extract_plan(module)
    build_library(module, extracted, get_target("cpu:generic"), folder / LIBRARY)
    (folder / PLAN).write_text(extracted.plan.to_json())
    if weight is None:
        weight = np.random.default_rng(seed).normal(0, 2, (VOCAB, VOCAB)).astype(np.dtype(dtype))
    (folder / "weights-00001.safetensors").write_bytes(bytes(offset) + weight.tobytes())
    if with_tokenizer:
        save(byte_level(), folder)
        (folder / CHAT_TEMPLATE).write_text(template)
        (folder / GENERATION_CONFIG).write_text('{"temperature": 0.5, "top_p": 7, "top_k": null, "max_new_tokens": 3}')
    files = tuple(FileSpec(file.name, file.stat().st_size, sha256_of(file)) for file in sorted(folder.iterdir()) if file.name != MANIFEST)
    shapes: dict[str, tuple[int | str, ...]] = {
        "tokens": ("n",),
        "positions": ("n",),
        "query_starts": ("b + 1",),
        "context_lens": ("b",),
        "logit_rows": ("r",),
        "slots.0": ("n",),
        "block_tables.0": ("b", "width"),
    }
    inputs = [TensorSpec(name, "int32", shape) for name, shape in shapes.items()]
    pools = (TensorSpec("k_pages", dtype, (1, "num_blocks", 1, 1, BLOCK)), TensorSpec("v_pages", dtype, (1, "num_blocks", 1, BLOCK, 1)))
    kv = KVSpec((KVGroup((0,), 1, 1, 1, pools=pools),), dtype, BLOCK)
    inputs += kv.pools("blocks")
    logits = TensorSpec("logits", "float32", ("r", VOCAB))
    inputs += [logits, TensorSpec("follow", dtype, (VOCAB, VOCAB))]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        cupola_version="0",
        tvm_version=tvm.__version__,
        source=SourceSpec("tiny", "test", ""),
        libraries=(LibrarySpec(LIBRARY, PLAN, DeviceSpec("cpu:generic", "cpu", "generic", f"{platform.machine()}-unknown-linux-gnu", ())),),
        scheme="f32",
        model=ModelConfig("tiny", context, VOCAB, (262,)),
        kv=kv,
        limits=Limits(8),
        functions=(FunctionSpec("forward", tuple(inputs), (logits,)),),
        weights=(WeightSpec("follow", dtype, (VOCAB, VOCAB), "weights-00001.safetensors", offset),),
        files=files,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return Artifact.open(folder)


def _module(dtype: str) -> tvm.IRModule:
    n, b, r, width, blocks = (tvm.tirx.Var(name, "int64") for name in ("n", "b", "r", "width", "blocks"))
    integers = {"tokens": (n,), "positions": (n,), "query_starts": (b + 1,), "context_lens": (b,), "logit_rows": (r,), "slots": (n,)}
    inputs = [relax.Var(name, relax.TensorType(shape, "int32")) for name, shape in {**integers, "block_tables": (b, width)}.items()]
    pages = [
        relax.Var("k_pages", relax.TensorType((1, blocks, 1, 1, BLOCK), dtype)),
        relax.Var("v_pages", relax.TensorType((1, blocks, 1, BLOCK, 1), dtype)),
    ]
    inputs += [*pages, relax.Var("follow", relax.TensorType((VOCAB, VOCAB), dtype))]
    builder = relax.BlockBuilder()
    with builder.function("forward", inputs, attrs={"num_input": len(inputs) - 1}):
        kernel = builder.add_func(_kernel(dtype), "kernel")
        with builder.dataflow():
            result = builder.emit_output(relax.call_tir(kernel, inputs, relax.TensorType((r, VOCAB), "float32")))
        builder.emit_func_output(result)
    return builder.get()


def _kernel(dtype: str) -> tvm.tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def kernel(
        tokens_: T.handle, positions_: T.handle, query_starts_: T.handle, context_lens_: T.handle, logit_rows_: T.handle, slots_: T.handle,
        block_tables_: T.handle, k_pages_: T.handle, v_pages_: T.handle, follow_: T.handle, out_: T.handle,
    ):  # fmt: skip
        n, b, r, width, blocks = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        tokens = T.match_buffer(tokens_, (n,), "int32")
        positions = T.match_buffer(positions_, (n,), "int32")
        query_starts = T.match_buffer(query_starts_, (b + 1,), "int32")
        context_lens = T.match_buffer(context_lens_, (b,), "int32")
        logit_rows = T.match_buffer(logit_rows_, (r,), "int32")
        slots = T.match_buffer(slots_, (n,), "int32")
        block_tables = T.match_buffer(block_tables_, (b, width), "int32")
        k_pages = T.match_buffer(k_pages_, (1, blocks, 1, 1, 4), dtype)
        v_pages = T.match_buffer(v_pages_, (1, blocks, 1, 4, 1), dtype)
        follow = T.match_buffer(follow_, (264, 264), dtype)
        out = T.match_buffer(out_, (r, 264), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            for i in range(n):
                k_pages[0, slots[i] // 4, 0, 0, slots[i] % 4] = T.Cast(dtype, tokens[i])
                v_pages[0, slots[i] // 4, 0, slots[i] % 4, 0] = T.Cast(dtype, positions[i])
            for q, s in T.grid(r, b):
                if query_starts[s] <= logit_rows[q] and logit_rows[q] < query_starts[s + 1]:
                    for v in range(264):
                        out[q, v] = T.float32(0)
                    for j in range(context_lens[s]):
                        if j <= positions[logit_rows[q]]:
                            for v in range(264):
                                out[q, v] = out[q, v] / T.float32(2) + T.Cast(
                                    "float32", follow[T.Cast("int32", k_pages[0, block_tables[s, j // 4], 0, 0, j % 4]), v]
                                )

    return kernel
