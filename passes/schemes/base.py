"""What a quantization scheme is: data that `quantize_weights` follows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cupola.passes.schemes.blocks import Blocks
from cupola.targets.weight_functions import WeightFunction


@dataclass(frozen=True)
class Storage:
    """One way to store a weight.

    Attributes:
        name: for people.
        dtype: of the floats, or of the codes.
        format: the name of the weight format; "": floats are stored.
        encode: from f32 [N, K] to codes, scales and perhaps mins, as `Blocks` has them; None: floats are stored.
        has_mins: whether there are mins.
        holds: ggml's types whose blocks it takes exactly as they are.
        nears: ggml's types that it comes so close to that they are not to be stored in less.
        keep: makes its own of the blocks of either; None where the numbers do not allow it.
    """

    name: str
    dtype: str
    format: str = ""
    encode: WeightFunction | None = None
    has_mins: bool = False
    holds: tuple[str, ...] = ()
    nears: tuple[str, ...] = ()
    keep: Callable[[Blocks], Blocks | None] = lambda blocks: blocks


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
        name: in the field's terms, such as w4a8: weights of 4 bits, activations of 8.
        description: one line for people.
        linear: how linear layers are stored.
        embedding: the same for the embedding and the vocabulary projection.
        quantize_x: the size of the groups in which activations are quantized to int8 where they meet quantized weights; 0: they are not.
        kv_dtype: how K and V are stored if nothing else is asked for, in the terms of that option.
    """

    name: str
    description: str
    linear: Choice
    embedding: Choice
    quantize_x: int
    kv_dtype: str
