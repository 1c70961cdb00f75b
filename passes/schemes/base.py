"""A quantization scheme: data that `quantize_weights` follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from cupola.targets.formats.format import WeightFormat


@dataclass(frozen=True)
class Storage:
    """One way to store a weight.

    Attributes:
        name: for people.
        dtype: of the floats, or of the codes.
        format: what codes stand for; None: floats are stored.
        weighted: whether errors of large weights count more where it is quantized.
        holds: ggml's types whose blocks it takes exactly as they are.
        nears: ggml's types that are not to be stored in fewer bits.
    """

    name: str
    dtype: str
    format: WeightFormat | None = None
    weighted: bool = False
    holds: tuple[str, ...] = ()
    nears: tuple[str, ...] = ()

    @property
    def exactly(self) -> Storage:
        """The same, of what it holds alone."""
        return replace(self, nears=())


@dataclass(frozen=True)
class Choice:
    """How the weights of one kind are stored: in the first of `keeps` that holds, or nears, what they come in, else as `otherwise`."""

    otherwise: Storage
    keeps: tuple[Storage, ...] = ()

    def pick(self, formats: Collection[str]) -> Storage:
        """The storage for a weight whose parts come in these ggml types; those that no storage knows have no say.

        Parts that nothing holds together get the finest, which loses least.
        """
        known = {name for storage in self.keeps for name in storage.holds + storage.nears} & set(formats)
        found = next((storage for storage in self.keeps if known and known.issubset(storage.holds + storage.nears)), None)
        return found or (self.keeps[-1] if len(known) > 1 and self.keeps else self.otherwise)


@dataclass(frozen=True)
class Scheme:
    """How a model's numbers are stored and multiplied.

    Attributes:
        name: in the field's terms, such as w4a8: weights of 4 bits, activations of 8; or w4a8-g64, in groups of 64.
        description: one line for people.
        linear: how linear layers are stored.
        embedding: the same for the embedding and the vocabulary projection.
        kv_dtype: how K and V are stored if nothing else is asked for, in the terms of that option.
        group_size: values that share a scale, where weights are quantized; 0: they are not.
        quantize_x: the same of activations, which become int8 where they meet quantized weights; 0: they stay as they are.
        keeps_bits: codes of a quantized checkpoint stay as they are, whatever their groups, if they have no more bits.
        exact: whether no weight may be rounded, so that those which no storage holds together are not joined either.
    """

    name: str
    description: str
    linear: Choice
    embedding: Choice
    kv_dtype: str
    group_size: int = 0
    quantize_x: int = 0
    keeps_bits: int = 0
    exact: bool = False

    def kind_of(self, stored_as: str) -> str:
        """A name that weights share which may be stored as one: of an exact scheme, those that come in the same format."""
        storage = self.linear.pick([stored_as])
        return "" if not self.exact else storage.dtype if storage.format is None else storage.format.name


def use_name(parameter: str, is_turned: bool) -> str:
    """The name of a weight as a layer multiplies it: the parameter's, or another one for its matrices with rows and columns swapped."""
    return f"{parameter}.T" if is_turned else parameter


@dataclass(frozen=True)
class Kept:
    """The weights that are stored as their source has them, by parameter (`use_name`).

    Attributes:
        storages: as what.
        orders: of those whose groups are no neighbouring columns, a name for the order of columns that makes them such.
    """

    storages: Mapping[str, Storage] = field(default_factory=dict)
    orders: Mapping[str, str] = field(default_factory=dict)

    def kind_of(self, parameter: str) -> str:
        """A name that weights share which may be stored as one; "": the scheme says that."""
        storage = self.storages.get(parameter)
        return "" if storage is None else storage.dtype if storage.format is None else storage.format.name
