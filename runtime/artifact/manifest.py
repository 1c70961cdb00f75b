"""The artifact: a folder with everything a model needs to run, and the only contract between compiler and runtime.

    manifest.json         this module's `Manifest`, as JSON
    lib.so, plan.json     the compiled module and what it does; lib.<device>.so and plan.<device>.json for further devices
    weights-NNNNN.safetensors
    tokenizer.json, special_tokens_map.json   only if the model came with them
    chat_template.jinja                       the template for all chats; chat_template.NAME.jinja is one of another name, such as tool_use
    generation_config.json                    only if the model came with one
    license.txt                               the model's licence, its name in the first line, only if its source states one

Dtypes are numpy's names plus `bfloat16`. A symbolic dimension is a string, such as `"n"`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.artifact.tensors import FunctionSpec, KernelSpec, WeightSpec
from cupola.runtime.errors import OptionError

FORMAT_VERSION = 11
MANIFEST, LIBRARY, PLAN, TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG, SPECIAL_TOKENS, LICENSE = (
    "manifest.json", "lib.so", "plan.json", "tokenizer.json", "chat_template.jinja", "generation_config.json",
    "special_tokens_map.json", "license.txt")  # fmt: skip
COMPILE_AGAIN, COPY_AGAIN = "compile the model again", "copy or compile it again"
NOT_HASHED = "0" * 64  # stands for the SHA-256 of a file without content, whose weights nobody had
DRAFT_ONLY = "give it to a larger model as --speculative draft:FOLDER, or compile it without --draft-vocabulary"
HOST = "cpu"  # the kind of targets whose kernels run in the host's memory


@dataclass(frozen=True)
class ModelConfig:
    """The model's properties that the runtime needs.

    `relative_positions` says that it sees distances between tokens and no positions, so that a sequence may begin at any;
    `padding_token_id` is a token that has no place in a prompt, since the model's positions count the others alone. A model that is
    `draft_only` says the first `vocab_size` tokens of more that it knows: good for guesses, and no answer.
    """

    family: str
    context_length: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    relative_positions: bool = False
    padding_token_id: int | None = None
    draft_only: bool = False

    def check_answers(self, file: object) -> None:
        """Raises OptionError if the model is good for drafts alone; `file` is where it was found."""
        if self.draft_only:
            problem = f"is a draft model, which says the first {self.vocab_size} tokens alone"
            raise OptionError(problem, file=str(file), field="model.draft_only", fix=DRAFT_ONLY)


@dataclass(frozen=True)
class Limits:
    """The limits of one call of `forward`."""

    max_batch_size: int


@dataclass(frozen=True)
class DeviceSpec:
    """The device that a library was compiled for.

    Attributes:
        name: the target's, as `cupola targets` lists it.
        kind: HOST, "cuda", "metal", "rocm" or "webgpu"; which part of the runtime can drive it.
        device: what tells it from others of its kind, by which a library is chosen.
        triple: of the host that loads it, as LLVM has them.
        features: what must be there on the machine that loads it, in the system's words.
    """

    name: str
    kind: str
    device: str
    triple: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class LibrarySpec:
    """A compiled library, the plan that it follows (`runtime/artifact/plan.py`), and what it runs on."""

    file: str
    plan: str
    target: DeviceSpec


@dataclass(frozen=True)
class SourceSpec:
    """Where the weights came from: a path or name, its format and the hash of its content."""

    name: str
    format: str
    sha256: str


@dataclass(frozen=True)
class FileSpec:
    """A file of the artifact, its size in bytes and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact.

    Of the `libraries`, which share all else, the first that a machine can run is loaded. `probes` are kernels that no model
    calls: they find out what the machine can do. `notes` are for people: an unverified family, a fallback that was taken.
    """

    format_version: int
    cupola_version: str
    tvm_version: str
    source: SourceSpec
    libraries: tuple[LibrarySpec, ...]
    scheme: str
    model: ModelConfig
    kv: KVSpec
    limits: Limits
    functions: tuple[FunctionSpec, ...]
    weights: tuple[WeightSpec, ...]
    files: tuple[FileSpec, ...]
    kernels: tuple[KernelSpec, ...] = ()
    probes: tuple[KernelSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def function(self, name: str) -> FunctionSpec:
        """The function called `name`; KeyError if there is none."""
        return {function.name: function for function in self.functions}[name]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"
