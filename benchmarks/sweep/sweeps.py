"""The sweeps, a table each: every causal model type, every type of text and something else, and what configurations can ask for beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configurations import Fields, tiny_fields
from multimodal import whole_fields
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from variants import VARIANTS

from cupola.models import FAMILIES

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Tiny:
    """A tiny model: the class of transformers' that makes it, its `model_type`, and the fields of its configuration."""

    auto_class: str
    model_type: str
    fields: Fields


@dataclass(frozen=True)
class Sweep:
    """A table of cases.

    Attributes:
        name: of the option, and of the files that hold the results.
        title: of the table.
        about: the sentence that says what its cases are.
        names: of the cases, in order.
        tiny: the model of a name; may raise what transformers raises of a configuration.
        num_turns: in how many parts a check takes the cases.
        tested: cases that the tests compare, which no part holds.
        has_layouts: whether checkpoints of such models come under several names of tensors.
    """

    name: str
    title: str
    about: str
    names: Sequence[str]
    tiny: Callable[[str], Tiny]
    num_turns: int
    tested: frozenset[str] = frozenset()
    has_layouts: bool = False

    @property
    def results(self) -> Path:
        """The file of the recorded results."""
        return _ROOT / "benchmarks" / "results" / f"{self.name}.json"

    @property
    def table(self) -> Path:
        """The table for people."""
        return _ROOT / "docs" / f"{self.name}.md"

    def part(self, turn: int) -> list[str]:
        """The cases of a turn, whatever its number."""
        return [name for name in self.names if name not in self.tested][turn % self.num_turns :: self.num_turns]


def _causal(name: str) -> Tiny:
    return Tiny("AutoModelForCausalLM", name, tiny_fields(name, CONFIG_MAPPING[name]))


def _multimodal(name: str) -> Tiny:
    return Tiny("AutoModelForMultimodalLM", name, whole_fields(name))


def _variant(name: str) -> Tiny:
    model_type = name.partition(":")[0]
    return Tiny("AutoModelForCausalLM", model_type, {**tiny_fields(model_type, CONFIG_MAPPING[model_type]), **VARIANTS[name]})


SWEEPS = (
    Sweep(
        "model_types", "Every causal language model of transformers",
        "Each `model_type` of `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES` as a tiny random checkpoint", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        _causal, 4, frozenset(family.model_type for family in FAMILIES),
    ),
    Sweep(
        "multimodal_types", "Every model of text and images or sound, as a text model",
        "Each `model_type` of `MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES` as a tiny random checkpoint, called with text alone, "
        "its weights under every name that checkpoints have for them", sorted(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
        _multimodal, 20, has_layouts=True,
    ),
    Sweep(
        "variants", "What configurations can ask for",
        "Routers, kinds of rotary embeddings, norms, windows, biases and more: for each a tiny random checkpoint that has it",
        list(VARIANTS), _variant, 40,
    ),
)  # fmt: skip
