"""Makes the model files that peers read, out of one GGUF file. Runs in a peer's environment.

python convert.py quantize SOURCE.gguf TARGET.gguf Q4_0     (llama.cpp's)
python convert.py huggingface SOURCE.gguf FOLDER            (CTranslate2's: transformers dequantizes)
python convert.py ctranslate2 HUGGINGFACE_FOLDER FOLDER     (CTranslate2's)
"""

from __future__ import annotations

import sys
from pathlib import Path


def quantize(source: str, target: str, kind: str) -> None:
    """Re-encodes a GGUF file's matrices as `kind`, such as Q8_0."""
    import llama_cpp as c

    params = c.llama_model_quantize_default_params()
    params.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    if c.llama_model_quantize(source.encode(), target.encode(), params):
        raise RuntimeError(f"llama.cpp can't make {kind} of {source}")


def huggingface(source: str, target: str) -> None:
    """A checkpoint in f32 with the GGUF file's exact values, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = Path(source).parent, Path(source).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
    model.hf_quantizer = None  # the weights are dequantized, and yet transformers would refuse to save them
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)


def ctranslate2(source: str, target: str) -> None:
    """CTranslate2's form of a checkpoint, in f32: it quantizes when it loads."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source).convert(target)


if __name__ == "__main__":
    {"quantize": quantize, "huggingface": huggingface, "ctranslate2": ctranslate2}[sys.argv[1]](*sys.argv[2:])
