"""Where models come from: Hugging Face directories, GGUF files, hub ids, built-in names."""

from cupola.compiler.sources.base import LazyTensor, Source
from cupola.compiler.sources.binding import Naming, bind_weights, left_out_tensors, unused_tensors
from cupola.compiler.sources.builtin import BUILTINS
from cupola.compiler.sources.resolve import fingerprint, open_source
from cupola.compiler.sources.text_model import text_fields

__all__ = [
    "BUILTINS",
    "LazyTensor",
    "Naming",
    "Source",
    "bind_weights",
    "fingerprint",
    "left_out_tensors",
    "open_source",
    "text_fields",
    "unused_tensors",
]
