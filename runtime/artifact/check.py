"""Checks a manifest beyond the types of its fields."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cupola.runtime.artifact.inputs import SIZES_OF_MODELS, STEP_INPUTS, STEP_OUTPUTS, input_line, input_specs, output_specs, state_slots
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, FileSpec, Manifest, ModelConfig
from cupola.runtime.artifact.state import ATTENTION, LATENT, NUM_BLOCKS, RECURRENT, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import ITEM_BYTES, FunctionSpec, KernelSpec, TensorSpec
from cupola.runtime.errors import ArtifactError
from cupola.runtime.machine import system_of

Fault = tuple[str, str]  # the field, and what is wrong with it
MAX_COUNT = 2**31 - 1  # positions, slots and token ids are int32
MAX_RANK, MAX_SIZE = 8, 2**48
_FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_manifest(manifest: Manifest, file: Path) -> None:
    """Raises ArtifactError naming `file` and the first field that is out of range or contradicts another."""
    for field, problem in _faults(manifest):
        raise ArtifactError(problem, file=file, field=field, fix=COMPILE_AGAIN)


def _faults(manifest: Manifest) -> Iterator[Fault]:
    """All faults, in an order that lets a later check rely on the earlier ones."""
    yield from _model_faults(manifest.model)
    yield from _kv_faults(manifest.kv)
    yield from _out_of_range("limits.max_batch_size", manifest.limits.max_batch_size, 1)
    yield from _file_faults(manifest.files)
    yield from _library_faults(manifest)
    yield from _weight_faults(manifest)
    yield from _repeated("functions", (function.name for function in manifest.functions))
    for i, function in enumerate(manifest.functions):
        yield from _tensor_faults(f"functions[{i}].inputs", function.inputs)
        yield from _tensor_faults(f"functions[{i}].outputs", function.outputs)
        yield from _out_of_range(f"functions[{i}].bytes_per_token", function.bytes_per_token, 0)
        yield from _out_of_range(f"functions[{i}].bytes_per_logit_row", function.bytes_per_logit_row, 0)
        yield from _out_of_range(f"functions[{i}].bytes_per_block", function.bytes_per_block, 0)
    yield from _kernel_faults("kernels", manifest.kernels)
    yield from _kernel_faults("probes", manifest.probes)
    forward = next((function for function in manifest.functions if function.name == "forward"), None)
    if forward is None:
        yield "functions", "there is no 'forward'"
    else:
        yield from _output_faults(manifest.model.vocab_size, forward)
        yield from _input_faults(manifest, forward)


def _kernel_faults(field: str, kernels: Iterable[KernelSpec]) -> Iterator[Fault]:
    for i, kernel in enumerate(kernels):
        for name in ("operations_per_row", "operations_per_pair", "window", "gathered_bytes_per_row", "num_gathered"):
            yield from _out_of_range(f"{field}[{i}].cost.{name}", getattr(kernel.cost, name), 0, MAX_SIZE)


def _model_faults(model: ModelConfig) -> Iterator[Fault]:
    yield from _out_of_range("model.context_length", model.context_length, 1)
    yield from _out_of_range("model.vocab_size", model.vocab_size, 1)
    for i, token_id in enumerate(model.stop_token_ids):
        yield from _out_of_range(f"model.stop_token_ids[{i}]", token_id, 0, model.vocab_size - 1)
    if model.bos_token_id is not None:
        yield from _out_of_range("model.bos_token_id", model.bos_token_id, 0, model.vocab_size - 1)


def _kv_faults(kv: KVSpec) -> Iterator[Fault]:
    yield from _unknown_dtype("kv.dtype", kv.dtype)
    yield from _out_of_range("kv.block_size", kv.block_size, 1)
    if not kv.groups:
        yield "kv.groups", "is empty"
    for i, group in enumerate(kv.groups):
        if not group.layers:
            yield f"kv.groups[{i}].layers", "is empty"
        for j, layer in enumerate(group.layers):
            yield from _out_of_range(f"kv.groups[{i}].layers[{j}]", layer, 0)
        if group.kind not in (ATTENTION, LATENT, RECURRENT):
            yield f"kv.groups[{i}].kind", f"is {reprlib.repr(group.kind)}, not {ATTENTION}, {LATENT} or {RECURRENT}"
        is_recurrent = group.kind == RECURRENT
        if is_recurrent and i < len(kv.groups) - 1:
            yield f"kv.groups[{i}].kind", f"is {RECURRENT}, which only the last group may be"
        for name in ("num_kv_heads", "key_dim", "value_dim"):
            yield from _out_of_range(f"kv.groups[{i}].{name}", getattr(group, name), 1 - is_recurrent, 0 if is_recurrent else MAX_COUNT)
        yield from _out_of_range(f"kv.groups[{i}].window", group.window, 0, 0 if is_recurrent else MAX_COUNT)
        if group.kind == LATENT:
            yield from _out_of_range(f"kv.groups[{i}].num_kv_heads", group.num_kv_heads, 1, 1)
            yield from _out_of_range(f"kv.groups[{i}].value_dim", group.value_dim, 1, group.key_dim)
        yield from _pool_faults(f"kv.groups[{i}].pools", group, kv)
    yield from _repeated("kv.groups.layers", (str(layer) for group in kv.groups for layer in group.layers))


def _pool_faults(field: str, group: KVGroup, kv: KVSpec) -> Iterator[Fault]:
    """Besides what is wrong with any tensor: its one unknown size is the number of blocks, its name is no other input's, and a block of all
    pools has room for what the group keeps of `block_size` tokens, however the target lays it out. A recurrent group's have its layers."""
    if not group.pools:
        yield field, "is empty"
    yield from _tensor_faults(field, group.pools, 1)
    for i, pool in enumerate(group.pools):
        if [size for size in pool.shape if isinstance(size, str)] != [NUM_BLOCKS]:
            yield f"{field}[{i}].shape", f"does not have {NUM_BLOCKS} once, and else numbers"
        if input_line(f"{pool.name}.0") is not None:
            yield f"{field}[{i}].name", f"{reprlib.repr(pool.name)} is another input's"
    if group.kind == RECURRENT:
        counts = [pool.shape[0] for pool in group.pools]
        if sum(count for count in counts if isinstance(count, int)) != len(group.layers):
            yield field, f"have {', '.join(map(str, counts))} layers, and the group {len(group.layers)}"
        return
    numbers = len(group.layers) * group.numbers_per_token * kv.block_size
    found, wanted = KVSpec((group,), kv.dtype, kv.block_size).bytes_per_block, numbers * ITEM_BYTES[kv.dtype]
    if found < wanted:
        yield field, f"hold {found} bytes a block, less than the {wanted} of its keys and values"


def _file_faults(files: tuple[FileSpec, ...]) -> Iterator[Fault]:
    for i, file in enumerate(files):
        if not _FILE_NAME.fullmatch(file.name):
            yield f"files[{i}].name", f"{reprlib.repr(file.name)} is not a plain file name"
        if not _SHA256.fullmatch(file.sha256):
            yield f"files[{i}].sha256", f"{reprlib.repr(file.sha256)} is not a SHA-256"
        yield from _out_of_range(f"files[{i}].num_bytes", file.num_bytes, 0, MAX_SIZE)
    yield from _repeated("files", (file.name for file in files))


def _library_faults(manifest: Manifest) -> Iterator[Fault]:
    if not manifest.libraries:
        yield "libraries", "is empty"
    listed = {file.name for file in manifest.files}
    for i, library in enumerate(manifest.libraries):
        if library.file not in listed:
            yield f"libraries[{i}].file", f"{reprlib.repr(library.file)} is not in files"
        if library.plan not in listed:
            yield f"libraries[{i}].plan", f"{reprlib.repr(library.plan)} is not in files"
    places = ((library.target.device, system_of(library.target.triple)) for library in manifest.libraries)
    yield from _repeated("libraries", (device if system in (None, "linux") else f"{device} for {system}" for device, system in places))


def _weight_faults(manifest: Manifest) -> Iterator[Fault]:
    sizes = {file.name: file.num_bytes for file in manifest.files}
    for i, weight in enumerate(manifest.weights):
        field = f"weights[{i}]"
        yield from _unknown_dtype(f"{field}.dtype", weight.dtype)
        yield from _wrong_shape(f"{field}.shape", weight.shape, 1)
        if weight.file not in sizes:
            yield f"{field}.file", f"{reprlib.repr(weight.file)} is not one of the files"
        num_bytes = TensorSpec(weight.name, weight.dtype, weight.shape).num_bytes
        if not 0 <= weight.offset <= sizes[weight.file] - num_bytes:
            yield f"{field}.offset", f"{reprlib.repr(weight.name)} lies outside its file"
    yield from _repeated("weights", (weight.name for weight in manifest.weights))


def _tensor_faults(field: str, tensors: tuple[TensorSpec, ...], lowest: int = 0) -> Iterator[Fault]:
    for i, tensor in enumerate(tensors):
        yield from _unknown_dtype(f"{field}[{i}].dtype", tensor.dtype)
        yield from _wrong_shape(f"{field}[{i}].shape", tensor.shape, lowest)
    yield from _repeated(field, (tensor.name for tensor in tensors))


def _input_faults(manifest: Manifest, forward: FunctionSpec) -> Iterator[Fault]:
    """Inputs of `forward` that a step can't provide: its arrays, the pages of `kv`, the weights and perhaps all outputs are there."""
    field, kv = "functions.forward.inputs", manifest.kv
    slots = [] if kv.recurrent is None else [state_slots(kv.recurrent)]
    lines = (line for line in STEP_INPUTS if line.name != "state_slots")
    given_by_step = (*(spec for line in lines for spec in line.specs(len(kv.paged))), *slots)
    steps = {spec.name: (spec.dtype, spec.shape) for spec in given_by_step}
    given: dict[str, tuple[str, tuple[int | str, ...]]] = {weight.name: (weight.dtype, weight.shape) for weight in manifest.weights}
    given |= {pool.name: (pool.dtype, pool.shape) for pool in kv.pools(NUM_BLOCKS)}
    names = {tensor.name for tensor in forward.inputs}
    required = [spec.name for spec in (*input_specs(len(kv.paged)), *slots)]
    missing = next((name for name in (*required, *given) if name not in names), None)
    if missing is not None:
        yield field, f"{reprlib.repr(missing)} is not among them"
    results = {output.name: (output.dtype, output.shape) for output in forward.outputs}
    if 0 < len(names & results.keys()) < len(results):
        yield field, "some of the outputs, and not all, are among them"
    given |= results
    for tensor in forward.inputs:
        if tensor.name in given:
            if not _fits(tensor, *given[tensor.name]):
                yield field, f"{reprlib.repr(tensor.name)} is not as the weights and the K/V cache have it"
        elif tensor.name not in steps:
            yield field, f"{reprlib.repr(tensor.name)} is nothing that this cupola gives"
        elif not _fits(tensor, *steps[tensor.name]):
            dtype, shape = steps[tensor.name]
            yield field, f"{reprlib.repr(tensor.name)} is not {dtype} of rank {len(shape)}"


def _fits(tensor: TensorSpec, dtype: str, shape: tuple[int | str, ...]) -> bool:
    """True if the tensor has that dtype and shape, in which a name stands for any symbolic dimension."""
    if tensor.dtype != dtype or len(tensor.shape) != len(shape):
        return False
    return all(
        isinstance(size, str) == (wanted not in SIZES_OF_MODELS) if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )


def _output_faults(vocab_size: int, forward: FunctionSpec) -> Iterator[Fault]:
    """The outputs are lines of the table, in its order, and none that every artifact gives is missing."""
    field, names = "functions.forward.outputs", [output.name for output in forward.outputs]
    known = [line.name for line in STEP_OUTPUTS]
    for name in names:
        if name not in known:
            yield field, f"{reprlib.repr(name)} is nothing that this cupola takes"
    missing = next((line.name for line in STEP_OUTPUTS if not line.optional and line.name not in names), None)
    if missing is not None or names != [name for name in known if name in names]:
        yield field, f"are {', '.join(names) or 'none'}, not {', '.join(known)} in this order"
    for output, wanted in zip(forward.outputs, output_specs(names, vocab_size), strict=True):
        if not _fits(output, wanted.dtype, wanted.shape):
            yield field, f"{reprlib.repr(output.name)} is not {wanted.dtype} [{', '.join(map(str, wanted.shape))}]"


def _out_of_range(field: str, value: int, lowest: int, highest: int = MAX_COUNT) -> Iterator[Fault]:
    if not lowest <= value <= highest:
        yield field, f"is {reprlib.repr(value)}, not from {lowest} to {highest}"


def _unknown_dtype(field: str, dtype: str) -> Iterator[Fault]:
    if dtype not in ITEM_BYTES:
        yield field, f"{reprlib.repr(dtype)} is unknown"


def _wrong_shape(field: str, shape: tuple[int | str, ...], lowest: int) -> Iterator[Fault]:
    if len(shape) > MAX_RANK:
        yield field, f"has {len(shape)} dimensions"
    for size in shape:
        if size == "" or (isinstance(size, int) and not lowest <= size <= MAX_SIZE):
            yield field, f"has the dimension {reprlib.repr(size)}"


def _repeated(field: str, names: Iterable[str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield field, f"{reprlib.repr(name)} comes twice"
        seen.add(name)
