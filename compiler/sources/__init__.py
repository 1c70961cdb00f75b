"""Where models come from: Hugging Face directories, GGUF files, hub ids, built-in names."""

from cupola.compiler.sources.base import LazyTensor, Source
from cupola.compiler.sources.binding import bind_weights, unused_tensors
from cupola.compiler.sources.builtin import BUILTINS
from cupola.compiler.sources.resolve import fingerprint, open_source

__all__ = ["BUILTINS", "LazyTensor", "Source", "bind_weights", "fingerprint", "open_source", "unused_tensors"]
