"""f8a16: weights in E4M3, the FP8 that vLLM, TensorRT-LLM and NVIDIA's checkpoints use, in groups of 128, each with a float16 scale.

As floats, codes keep small weights beside large ones, so that larger groups lose little, and every width has the same format. Activations
stay as they are. The embedding and the vocabulary projection, which suffer most, get integers of 8 bits. Those lose less: of normally
distributed weights in such groups 0.65 %, E4M3 2.6 %.
"""

from __future__ import annotations

from cupola.passes.schemes.base import Choice, Scheme
from cupola.passes.schemes.integers import embedding_choice, storage
from cupola.targets.formats.format import WeightFormat

_GROUP = 128
_E4M3 = WeightFormat(8, _GROUP, table="e4m3")
_DESCRIPTION = f"weights in E4M3 (FP8) in groups of {_GROUP}, activations as they are"

SCHEMES = (Scheme("f8a16", _DESCRIPTION, Choice(storage(_E4M3)), embedding_choice(8, _GROUP), "f16", _GROUP, keeps_bits=8),)
