"""The manifest and the artifact's files: what is right comes back as it was, what is not is one ArtifactError."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola.runtime.artifact import folder, verified
from cupola.runtime.artifact.folder import Artifact, sha256_of
from cupola.runtime.artifact.manifest import (
    FORMAT_VERSION,
    LIBRARY,
    MANIFEST,
    PLAN,
    TOKENIZER,
    DeviceSpec,
    FileSpec,
    LibrarySpec,
    Limits,
    Manifest,
    ModelConfig,
    SourceSpec,
)
from cupola.runtime.artifact.read import MAX_MANIFEST_BYTES, parse_manifest
from cupola.runtime.artifact.state import LATENT, RECURRENT, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import FunctionSpec, KernelCost, KernelSpec, TensorSpec, WeightSpec
from cupola.runtime.device.memory import choose_num_blocks
from cupola.runtime.errors import ArtifactError, InputError

SHARD = "weights-00001.safetensors"
FILE = Path("artifact/manifest.json")
STEP = {
    "tokens": ("n",), "positions": ("n",), "query_starts": ("b + 1",), "context_lens": ("b",), "logit_rows": ("r",),
    "slots.0": ("n",), "block_tables.0": ("b", "max_blocks_0"), "slots.1": ("n",), "block_tables.1": ("b", "max_blocks_1"),
}  # fmt: skip


def test_pools_are_sized_and_named_after_their_groups() -> None:
    first = (TensorSpec("k_pages", "int8", (2, "num_blocks", 3, 32)), TensorSpec("scales", "float32", (2, 3, "num_blocks")))
    kv = KVSpec((KVGroup((0, 2), 3, 2, 2, pools=first), KVGroup((1,), 1, 1, 1, pools=first[:1])), "int8", 16)
    assert [(pool.name, pool.shape) for pool in kv.pools(5)] == [
        ("k_pages.0", (2, 5, 3, 32)), ("scales.0", (2, 3, 5)), ("k_pages.1", (2, 5, 3, 32))]  # fmt: skip
    assert kv.pools_of(1, "n") == [TensorSpec("k_pages.1", "int8", (2, "n", 3, 32))]
    assert [kv.block_axes(group) for group in range(2)] == [[1, 2], [1]]
    assert kv.bytes_per_block == 2 * 3 * 32 + 2 * 3 * 4 + 2 * 3 * 32


def pools(layers: int, heads: int, key: int, value: int) -> tuple[TensorSpec, ...]:
    whole: tuple[int | str, ...] = (layers, "num_blocks", heads)
    return TensorSpec("k_pages", "float16", (*whole, key, 16)), TensorSpec("v_pages", "float16", (*whole, 16, value))


def make_manifest(files: tuple[FileSpec, ...]) -> Manifest:
    """Two K/V groups, two weights, a function beside `forward`."""
    pages = [
        TensorSpec("k_pages.0", "float16", (2, "blocks", 2, 8, 16)),
        TensorSpec("v_pages.0", "float16", (2, "blocks", 2, 16, 4)),
        TensorSpec("k_pages.1", "float16", (1, "more", 1, 8, 16)),
        TensorSpec("v_pages.1", "float16", (1, "more", 1, 16, 8)),
    ]
    weights = [TensorSpec("embed", "float32", (10, 8)), TensorSpec("scale", "bfloat16", (8,))]
    outputs = tuple(
        TensorSpec(*spec) for spec in (("logits", "float32", ("r", 10)), ("maxima", "float32", ("r", 1)), ("argmax", "int32", (8, "r")))
    )
    inputs = [*(TensorSpec(name, "int32", shape) for name, shape in STEP.items()), *pages, *weights, *outputs]
    forward = FunctionSpec("forward", tuple(inputs), outputs)
    return Manifest(
        format_version=FORMAT_VERSION,
        cupola_version="0.1.0",
        tvm_version="0.27.0",
        source=SourceSpec("tiny é [1]", "huggingface", "0" * 64),
        libraries=(LibrarySpec("lib.so", "plan.json", DeviceSpec("cpu:avx2", "cpu", "avx2", "x86_64-linux-gnu", ("avx2", "fma"))),),
        scheme="f32",
        model=ModelConfig("llama", 64, 10, (0, 9), 1),
        kv=KVSpec((KVGroup((0, 2), 2, 8, 4, 0, pools(2, 2, 8, 4)), KVGroup((1,), 1, 8, 8, 32, pools(1, 1, 8, 8))), "float16", 16),
        limits=Limits(4),
        functions=(forward, FunctionSpec("other", (), ())),
        weights=(WeightSpec("embed", "float32", (10, 8), SHARD, 64), WeightSpec("scale", "bfloat16", (8,), SHARD, 384)),
        files=files,
        kernels=(KernelSpec("matmul", KernelCost("int8", 24, 0, 0, 8)),),
        probes=(KernelSpec("probe_read"),),
        notes=("not verified",),
    )


def write_artifact(folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    (folder / LIBRARY).write_bytes(b"\x7fELF and so on")
    (folder / PLAN).write_text("{}")
    (folder / SHARD).write_bytes(bytes(400))
    (folder / TOKENIZER).write_text("{}")
    manifest = make_manifest(tuple(FileSpec(f.name, f.stat().st_size, sha256_of(f)) for f in sorted(folder.iterdir())))
    (folder / MANIFEST).write_text(manifest.to_json())
    return Artifact(folder, manifest)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "artifact")


GOOD = make_manifest((FileSpec("lib.so", 13, "0" * 64), FileSpec(SHARD, 400, "1" * 64), FileSpec("plan.json", 2, "2" * 64)))


def change(path: str, value: object) -> str:
    """GOOD as JSON with another value at a path such as "kv.groups.0.window"; "…" removes the field."""
    data = json.loads(GOOD.to_json())
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = data
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


def refused(text: str) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        parse_manifest(text, FILE)
    return check_line(caught.value)


def check_line(error: ArtifactError) -> ArtifactError:
    """One line that names the file and the fix."""
    assert str(error).isprintable() and len(str(error)) < 500
    assert error.file is not None and error.fix
    return error


# The manifest


def test_what_is_written_is_read() -> None:
    assert parse_manifest(GOOD.to_json(), FILE) == GOOD
    assert GOOD.function("forward").inputs[0].name == "tokens"
    assert GOOD.kv.bytes_per_block == (2 * 2 * (8 + 4) + 1 * 1 * (8 + 8)) * 16 * 2


WRONG_FIELDS = [
    ("format_version", FORMAT_VERSION + 1, "format_version"), ("format_version", 0, "format_version"),
    ("format_version", 10**400, "format_version"), ("format_version", True, "format_version"),
    ("format_version", str(FORMAT_VERSION), "format_version"), ("format_version", float(FORMAT_VERSION), "format_version"),
    ("model", None, "model"), ("model.extra", 1, "model"), ("model.vocab_size", ..., "model"),
    ("model.vocab_size", 0, "model.vocab_size"), ("model.vocab_size", True, "model.vocab_size"),
    ("model.vocab_size", 9.0, "model.vocab_size"), ("model.vocab_size", 10**400, "model.vocab_size"),
    ("model.vocab_size", float("nan"), "model.vocab_size"), ("model.vocab_size", float("inf"), "model.vocab_size"),
    ("model.context_length", 0, "model.context_length"), ("model.context_length", -1, "model.context_length"),
    ("model.context_length", 2**31, "model.context_length"), ("model.stop_token_ids", [1, 10], r"model.stop_token_ids[1]"),
    ("kernels", ["matmul"], "kernels[0]"), ("kernels.0.cost.operations_per_row", -1, "kernels[0].cost.operations_per_row"),
    ("probes.0.cost.window", 2**60, "probes[0].cost.window"),
    ("model.stop_token_ids", [-1], "model.stop_token_ids[0]"), ("model.bos_token_id", 10, "model.bos_token_id"),
    ("model.family", "a\nb", "model.family"), ("notes", ["\x1b[31m"], "notes[0]"), ("source.name", "\ud800", "source.name"),
    ("kv.groups", [], "kv.groups"), ("kv.groups.0.layers", [], "kv.groups[0].layers"),
    ("kv.groups.0.layers", [0, 1], "kv.groups.layers"), ("kv.groups.0.layers", [0, -1], "kv.groups[0].layers[1]"),
    ("kv.groups.0.num_kv_heads", 0, "kv.groups[0].num_kv_heads"), ("kv.groups.1.key_dim", 0, "kv.groups[1].key_dim"),
    ("kv.groups.1.value_dim", -4, "kv.groups[1].value_dim"), ("kv.groups.1.window", -1, "kv.groups[1].window"),
    ("kv.block_size", 0, "kv.block_size"), ("kv.dtype", "float13", "kv.dtype"), ("limits.max_batch_size", 0, "limits.max_batch_size"),
    # what contradicts the signature
    ("kv.block_size", 32, "kv.groups[0].pools"), ("kv.dtype", "float32", "kv.groups[0].pools"),
    ("kv.groups.0.num_kv_heads", 4, "kv.groups[0].pools"), ("kv.groups.0.pools", [], "kv.groups[0].pools"),
    ("kv.groups.1.pools.0.dtype", "float13", "kv.groups[1].pools[0].dtype"),
    ("kv.groups.0.pools.1.shape.0", 0, "kv.groups[0].pools[1].shape"),
    ("kv.groups.0.pools.1.shape.1", 9, "kv.groups[0].pools[1].shape"), ("kv.groups.0.pools.1.shape.1", "n", "kv.groups[0].pools[1].shape"),
    ("kv.groups.0.pools.0.name", "slots", "kv.groups[0].pools[0].name"), ("kv.groups.0.pools.0.name", "v_pages", "kv.groups[0].pools"),
    ("kv.groups.0.pools.0.shape.0", 3, "functions.forward.inputs"), ("kv.groups.0.pools.0.dtype", "float32", "functions.forward.inputs"),
    ("kv.groups.0.pools.0.name", "keys", "functions.forward.inputs"),
    ("kv.groups.1", ..., "functions.forward.inputs"), ("model.vocab_size", 11, "functions.forward.outputs"),
    ("functions", [], "functions"), ("functions.0.name", "backward", "functions"), ("functions.1.name", "forward", "functions"),
    ("functions.0.outputs", [], "functions.forward.outputs"), ("functions.0.outputs.1.shape", ["r", 2], "functions.forward.outputs"),
    ("functions.0.outputs", [{"name": name, "dtype": "float32", "shape": ["r", 10]} for name in "ab"], "functions.forward.outputs"),
    ("functions.0.outputs.2.dtype", "float32", "functions.forward.outputs"),
    ("functions.0.outputs.2.shape", [7, "r"], "functions.forward.outputs"),
    ("functions.0.inputs.0", ..., "functions.forward.inputs"),
    ("functions.0.inputs.0.name", "mystery", "functions.forward.inputs"),
    ("functions.0.inputs.0.dtype", "int64", "functions.forward.inputs"),
    ("functions.0.inputs.0.dtype", "int13", "functions[0].inputs[0].dtype"),
    ("functions.0.inputs.0.shape", [-1], "functions[0].inputs[0].shape"),
    ("functions.0.inputs.0.shape", ["n", "n"], "functions.forward.inputs"),
    ("functions.0.inputs.0.shape", [""], "functions[0].inputs[0].shape"),
    ("functions.0.inputs.0.shape", ["n"] * 99, "functions[0].inputs[0].shape"),
    ("functions.0.inputs.1.name", "tokens", "functions[0].inputs"),
    ("functions.0.inputs.15", ..., "functions.forward.inputs"), ("functions.0.inputs.16.shape", ["r", 2], "functions.forward.inputs"),
    ("functions.0.inputs.14.shape", [9], "functions.forward.inputs"), ("functions.0.inputs.14", ..., "functions.forward.inputs"),
    ("libraries", [], "libraries"), ("libraries.0.file", "gone.so", "libraries[0].file"),
    ("libraries", 2 * json.loads(GOOD.to_json())["libraries"], "libraries"),
    # weights and files
    ("weights.0.offset", -1, "weights[0].offset"), ("weights.0.offset", 81, "weights[0].offset"),
    ("weights.0.offset", 10**400, "weights[0].offset"),
    ("weights.0.shape", [10, -8], "weights[0].shape"), ("weights.0.shape", [0], "weights[0].shape"),
    ("weights.0.shape", [2**48, 2**48], "weights[0].offset"), ("weights.0.shape", ["n"], "weights[0].shape[0]"),
    ("weights.0.dtype", "complex64", "weights[0].dtype"), ("weights.0.file", "gone", "weights[0].file"),
    ("weights.1.name", "embed", "weights"), ("weights", [], "functions.forward.inputs"),
    ("files.0.name", "../lib.so", "files[0].name"), ("files.0.name", "/etc/passwd", "files[0].name"),
    ("files.0.name", "..", "files[0].name"),
    ("files.0.name", "", "files[0].name"), ("files.0.name", "a\\b", "files[0].name"), ("files.0.name", "x" * 300, "files[0].name"),
    ("files.0.name", "lib.so\n", "files[0].name"), ("files.0.name", "other.so", "libraries[0].file"), ("files.1.name", "lib.so", "files"),
    ("files.0.sha256", "0" * 63, "files[0].sha256"), ("files.0.num_bytes", -1, "files[0].num_bytes"),
    ("files.0.num_bytes", 2**60, "files[0].num_bytes"), ("files.0", {}, "files[0]"), ("files", "lib.so", "files"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "field"), WRONG_FIELDS, ids=[f"{i}-{path}" for i, (path, _, _) in enumerate(WRONG_FIELDS)])
def test_a_wrong_field_is_named(path: str, value: object, field: str) -> None:
    error = refused(change(path, value))
    assert error.field == field
    assert str(error).startswith(f"{FILE}: {field}: ")


STATE = KVGroup(
    (1, 4, 2),
    0,
    0,
    0,
    0,
    (TensorSpec("conv", "float32", (2, "num_blocks", 3, 8)), TensorSpec("scan", "float32", (1, "num_blocks", 9))),
    RECURRENT,
)


def recurrent_manifest(*groups: KVGroup, inputs: tuple[str, ...] = ("state_slots.2", "conv.2", "scan.2")) -> str:
    """GOOD with further groups, and such inputs."""
    kv = replace(GOOD.kv, groups=(replace(GOOD.kv.groups[0], layers=(0, 3)), replace(GOOD.kv.groups[1], layers=(5,)), *groups))
    known = {spec.name: spec for spec in (TensorSpec("state_slots.2", "int32", ("b", 2)), *STATE_INPUTS)}
    forward, other = GOOD.functions
    forward = replace(forward, inputs=(*(known[name] for name in inputs), *forward.inputs))
    return replace(GOOD, kv=kv, functions=(forward, other)).to_json()


STATE_INPUTS = tuple(
    replace(pool, name=f"{pool.name}.2", shape=tuple("m" if s == "num_blocks" else s for s in pool.shape)) for pool in STATE.pools
)


def test_a_recurrent_group_takes_slots_of_states() -> None:
    kv = parse_manifest(recurrent_manifest(STATE), FILE).kv
    assert (kv.recurrent, len(kv.paged), GOOD.kv.recurrent) == (2, 2, None)
    assert kv.most_blocks(64, 8) == (4, 4, 2)
    assert kv.group_bytes_per_block(2) == 4 * (2 * 3 * 8 + 9)


@pytest.mark.parametrize(
    ("group", "inputs", "field"),
    [
        (replace(STATE, kind="both"), None, "kv.groups[2].kind"),
        (replace(STATE, window=3), None, "kv.groups[2].window"),
        (replace(STATE, key_dim=8), None, "kv.groups[2].key_dim"),
        (replace(STATE, layers=(1, 4)), None, "kv.groups[2].pools"),
        (replace(STATE, layers=(0, 4, 2)), None, "kv.groups.layers"),
        (replace(STATE, pools=()), None, "kv.groups[2].pools"),
        (STATE, ("conv.2", "scan.2"), "functions.forward.inputs"),
        (STATE, ("state_slots.2", "conv.2"), "functions.forward.inputs"),
    ],
    ids=["kind", "window", "key_dim", "layers", "twice", "pools", "no slots", "no pool"],
)
def test_what_is_wrong_with_a_recurrent_group(group: KVGroup, inputs: tuple[str, ...] | None, field: str) -> None:
    text = recurrent_manifest(group) if inputs is None else recurrent_manifest(group, inputs=inputs)
    assert refused(text).field == field


def test_a_recurrent_group_stands_last() -> None:
    behind = replace(GOOD.kv.groups[1], layers=(7,))
    assert refused(recurrent_manifest(STATE, behind)).field == "kv.groups[2].kind"


ROW = (TensorSpec("latents", GOOD.kv.dtype, (1, "num_blocks", GOOD.kv.block_size, 24)),)


@pytest.mark.parametrize(
    ("group", "field"),
    [
        (KVGroup((2,), 2, 24, 16, 0, ROW, LATENT), "kv.groups[2].num_kv_heads"),
        (KVGroup((2,), 1, 24, 25, 0, ROW, LATENT), "kv.groups[2].value_dim"),
        (KVGroup((2,), 1, 25, 16, 0, ROW, LATENT), "kv.groups[2].pools"),
        (KVGroup((2,), 1, 24, 16, 0, ROW), "kv.groups[2].pools"),
        (KVGroup((2,), 1, 24, 16, 0, ROW, LATENT), "functions.forward.inputs"),
    ],
    ids=["heads", "values", "small", "no latents", "inputs"],
)
def test_a_latent_group_has_one_row_a_token(group: KVGroup, field: str) -> None:
    assert refused(recurrent_manifest(group, inputs=())).field == field


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"), ("{", "is not JSON"), (GOOD.to_json()[:-9], "is not JSON"), ("[" * 10**5, "is not JSON"),
        ('{"a":' * 10**5, "is not JSON"), ("null", "format_version: is None"), ("[]", "format_version: is None"), ("1", "format_version"),
        ("9" * 5000, "is not JSON"), ('{"format_version": 1, "format_version": 1}', "a key comes twice"), ("\ufeff{}", "is not JSON"),
        (f'{{"format_version": {FORMAT_VERSION}}}', "expected the fields format_version, cupola_version"),
        (f'{{"format_version": {FORMAT_VERSION}, "model": ' + "[" * 900 + "]" * 900 + "}", "expected the fields"),
        ('{"format_version": ' + "[" * 900 + "]" * 900 + "}", "format_version: is [[["),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_what_is_no_manifest(text: str, message: str) -> None:
    assert message in str(refused(text))


def test_a_newer_format_says_to_upgrade_and_an_older_one_to_compile() -> None:
    assert refused(change("format_version", FORMAT_VERSION + 1)).fix == "upgrade cupola"
    assert refused(change("format_version", 0)).fix == "compile the model again"


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30]), st.floats(), st.text(max_size=8),
    st.sampled_from(["float32", "int32", "bfloat16", "lib.so", SHARD, "forward", "tokens", "n", "../x", "k_pages.0"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every field, list and entry."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in paths(inner, (*path, key)))]


PATHS = paths(json.loads(GOOD.to_json()))[1:]


@settings(max_examples=1500)
@given(
    st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(["replace", "remove", "repeat", "swap"]), VALUES), min_size=1, max_size=2)
)
def test_mutations_are_read_or_refused(mutations: list[tuple[tuple[str | int, ...], str, object]]) -> None:
    data = json.loads(GOOD.to_json())
    for path, kind, value in mutations:
        data = mutate(data, path, kind, value)
    try:
        manifest = parse_manifest(json.dumps(data), FILE)
    except ArtifactError as error:
        check_line(error)
        return
    # What passes for a manifest can be worked with.
    assert parse_manifest(manifest.to_json(), FILE) == manifest
    assert manifest.function("forward").outputs and manifest.kv.bytes_per_block > 0
    assert all(name not in (".", "..") and "/" not in name for name in (file.name for file in manifest.files))
    try:
        assert min(choose_num_blocks(manifest.kv, "1GB", manifest.kv.most_blocks(manifest.model.context_length, 512), 4)) > 0
    except InputError as error:
        assert str(error).isprintable()


def mutate(data: object, path: tuple[str | int, ...], kind: str, value: object) -> object:
    data = copy.deepcopy(data)
    place = data
    for part in path[:-1]:
        try:
            place = place[part]  # type: ignore[index]
        except (LookupError, TypeError):  # an earlier mutation took it away
            return data
    last = path[-1]
    if not isinstance(place, dict | list) or (isinstance(place, list) and not (isinstance(last, int) and last < len(place))):
        return data
    if kind == "remove" and (isinstance(place, list) or last in place):
        del place[last]  # type: ignore[arg-type]
    elif kind == "repeat" and isinstance(place, list):
        place.append(place[last])  # type: ignore[index]
    elif kind == "swap" and isinstance(place, list):
        place.reverse()
    else:
        place[last] = value  # type: ignore[index]
    return data


@settings(max_examples=300)
@given(st.data())
def test_flipped_characters_are_read_or_refused(data: st.DataObject) -> None:
    text = GOOD.to_json()
    at, letter = data.draw(st.integers(0, len(text) - 1)), data.draw(st.characters())
    try:
        parse_manifest(text[:at] + letter + text[at + 1 :], FILE)
    except ArtifactError as error:
        check_line(error)


# The files


def test_a_whole_artifact_opens(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Artifact.open(artifact.path) == artifact
    (artifact.path / "README").write_text("what the manifest does not list is not the artifact's")
    (tmp_path / "link").symlink_to(artifact.path)
    assert Artifact.open(str(tmp_path / "link")).manifest == artifact.manifest
    monkeypatch.chdir(artifact.path)
    assert Artifact.open(".").manifest == artifact.manifest


def damage(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: make(folder / name)


def as_link(target: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        outside = file.parent.parent / "outside"
        shutil.copy(file, outside)
        file.unlink()
        file.symlink_to(target)

    return make


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def grow(file: Path) -> None:
    file.write_bytes(bytes(1))
    os.truncate(file, MAX_MANIFEST_BYTES + 1)


DAMAGES = [
    (damage(MANIFEST, Path.unlink), "manifest.json: can't be read: No such file"),
    (damage(MANIFEST, as_folder), "manifest.json: is not a manifest"),
    (damage(MANIFEST, as_pipe), "manifest.json: is not a manifest"),
    (damage(MANIFEST, grow), "manifest.json: is not a manifest"),
    (damage(MANIFEST, as_link("/dev/zero")), "manifest.json: is not a manifest"),
    (damage(MANIFEST, lambda file: file.write_bytes(b"\xff\xfe")), "manifest.json: can't be read: is not UTF-8 text"),
    (damage(MANIFEST, lambda file: os.truncate(file, 1000)), "manifest.json: is not JSON"),
    (damage(LIBRARY, Path.unlink), "lib.so: is missing"),
    (damage(LIBRARY, as_folder), "lib.so: is not a regular file"),
    (damage(LIBRARY, as_pipe), "lib.so: is not a regular file"),
    (damage(LIBRARY, lambda file: os.truncate(file, 5)), "lib.so: has 5 bytes, not 14"),
    (damage(LIBRARY, lambda file: os.truncate(file, 15)), "lib.so: has 15 bytes, not 14"),
    (damage(LIBRARY, flip), "lib.so: does not match its SHA-256"),
    (damage(SHARD, flip), f"{SHARD}: does not match its SHA-256"),
    (damage(TOKENIZER, flip), "tokenizer.json: does not match its SHA-256"),
    (damage(SHARD, as_link("../outside")), f"{SHARD}: is a link to outside of the artifact"),
    (damage(LIBRARY, as_link("../outside")), "lib.so: is a link to outside of the artifact"),
    (damage(LIBRARY, as_link("nowhere")), "lib.so: is missing"),
    (damage(LIBRARY, as_link("lib.so")), "lib.so: can't be read"),
]


def test_what_was_found_whole_is_not_read_again(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_NS", -(10**10))  # as if the files were old
    Artifact.open(artifact.path)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "sha256_of", lambda file: "not read")
        Artifact.open(artifact.path)
    time.sleep(0.05)  # the system's clock for files moves in steps
    flip(artifact.path / SHARD)
    with pytest.raises(ArtifactError, match="does not match"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(("do", "message"), DAMAGES, ids=[f"{i}-{message}" for i, (_, message) in enumerate(DAMAGES)])
def test_damaged_files_are_named(artifact: Artifact, do: Callable[[Path], object], message: str) -> None:
    do(artifact.path)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(artifact.path)
    assert message in str(check_line(caught.value))


def test_what_is_no_folder_of_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "gone", tmp_path / ("x" * 300), "a\0b", ""):
        with pytest.raises(ArtifactError) as caught:
            Artifact.open(path)
        assert "manifest.json" in str(caught.value) and caught.value.fix


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_to_files_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    artifact = write_artifact(tmp_path_factory.mktemp("random") / "artifact")
    file = artifact.path / data.draw(st.sampled_from([entry.name for entry in artifact.manifest.files]))
    content = file.read_bytes()
    changed = data.draw(
        st.binary(max_size=len(content) + 4) | st.integers(0, len(content) - 1).map(lambda n: content[:n] + content[n + 1 :])
    )
    file.write_bytes(changed)
    if changed == content:
        assert Artifact.open(artifact.path)
        return
    with pytest.raises(ArtifactError, match=file.name):
        Artifact.open(artifact.path)


# The library is native code


LOAD = """
import ctypes, sys
from cupola.runtime.errors import ArtifactError
from cupola.runtime.llm import LLM
try:
    LLM(sys.argv[1])
except ArtifactError as error:
    print(error)
print("tvm" in sys.modules, "lib.so" in open("/proc/self/maps").read())
if len(sys.argv) > 2:
    ctypes.CDLL(sys.argv[1] + "/lib.so")
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_library_is_not_loaded_before_its_hash_is_checked(artifact: Artifact, tmp_path: Path) -> None:
    marker, library = tmp_path / "ran", artifact.path / LIBRARY
    code = f'#include <stdio.h>\n__attribute__((constructor)) void run(void) {{ fclose(fopen("{marker}", "w")); }}\n'
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"], input=code, text=True, check=True)
    manifest = artifact.manifest
    files = tuple(replace(file, num_bytes=library.stat().st_size) if file.name == LIBRARY else file for file in manifest.files)
    (artifact.path / MANIFEST).write_text(replace(manifest, files=files).to_json())

    def load(*arguments: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", LOAD, str(artifact.path), *arguments], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    error, nothing_loaded = load()
    assert error.startswith(f"{library}: does not match its SHA-256") and nothing_loaded == "False False"
    assert not marker.exists()
    load("control")  # it does run when it is loaded
    assert marker.exists()
