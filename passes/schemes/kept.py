"""keep-a8 and keep-a16: every weight exactly as its source has it: a GGUF file's tensors each in its own format, and so a checkpoint's.

What no format holds is stored in float32, and so are weights of several formats that nothing holds together.
"""

from __future__ import annotations

from cupola.passes.schemes.base import Choice, Scheme
from cupola.passes.schemes.floats import BF16, F16, F32
from cupola.passes.schemes.integers import ACTIVATION_GROUP, storage
from cupola.targets.formats.ggml import GGML_FORMATS

_FLOATS = (F16, BF16, F32)
_KEEPS = (*(storage(form).exactly for form in dict.fromkeys(GGML_FORMATS.values())), *_FLOATS)
_CHOICE = Choice(F32, _KEEPS)
_DESCRIPTION = "every weight as its source has it, in formats of GGUF files or of quantized checkpoints; activations "

SCHEMES = (
    Scheme(
        "keep-a8", _DESCRIPTION + "quantized to 8 bits", _CHOICE, _CHOICE, "bf16", quantize_x=ACTIVATION_GROUP, keeps_bits=8, exact=True
    ),
    Scheme("keep-a16", _DESCRIPTION + "as they are", _CHOICE, _CHOICE, "f16", keeps_bits=8, exact=True),
)
