"""The tables of engines, files and workloads. Another engine, variant or workload is a line here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from protocol import Times


@dataclass(frozen=True)
class Venv:
    """A peer's environment: what pip installs, with which options, under which variables."""

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


_TORCH = ("torch==2.13.0", "transformers==5.23.0", "accelerate>=1.12,<2", "gguf==0.19.0")
# GCC 12 takes AMX's tile configuration for 8 bytes of memory instead of 64 and drops the stores to the rest as dead, so that llama.cpp
# crashes on CPUs with AMX; hence the flags. No cache: a wheel that pip built there before would not be this build.
_NATIVE = (("CMAKE_ARGS", "-DGGML_NATIVE=ON"), ("CXXFLAGS", "-fno-dse -fno-tree-dse"))
# What a machine without AVX-512, or with VNNI and without AMX, would build, wherever it is built.
_AVX2_FLAGS = "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
_AVX2 = (("CMAKE_ARGS", f"{_AVX2_FLAGS} -DGGML_AVX512=OFF"),)
_AVX512_VNNI = (("CMAKE_ARGS", f"{_AVX2_FLAGS} -DGGML_BMI2=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON"),)
_LLAMA_CPP = ("llama-cpp-python==0.3.36",), ("--no-binary", "llama-cpp-python", "--no-cache-dir")
VENVS = {
    "llama.cpp": Venv(*_LLAMA_CPP, _NATIVE),
    "llama.cpp-avx2": Venv(*_LLAMA_CPP, _AVX2),
    "llama.cpp-avx512vnni": Venv(*_LLAMA_CPP, _AVX512_VNNI),
    "openvino": Venv(("openvino-genai==2026.4.1", "gguf==0.19.0")),
    "ctranslate2": Venv(("ctranslate2==4.8.5", *_TORCH)),
    "transformers": Venv(_TORCH),
    "plot": Venv(("matplotlib>=3.10,<4",)),
}


@dataclass(frozen=True)
class File:
    """A model file or folder, made from `source`: another of these, or "packaged", the GGUF file.

    In cupola's own `venv` the compiler makes it, with `arguments`; elsewhere convert.py does, with `action` and `arguments`.
    """

    source: str
    venv: str
    action: str
    arguments: tuple[str, ...] = ()


def _compiled(source: str, *arguments: str) -> File:
    return File(source, "cupola", "compile", arguments)


FILES = {
    "q4_0.gguf": File("packaged", "llama.cpp", "quantize", ("Q4_0",)),
    "q8_0.gguf": File("packaged", "llama.cpp", "quantize", ("Q8_0",)),
    "huggingface": File("packaged", "transformers", "huggingface"),
    "ctranslate2": File("huggingface", "ctranslate2", "ctranslate2"),
    "cupola-f32": _compiled("packaged", "--quant", "f32"),
    "cupola-bf16": _compiled("packaged", "--quant", "bf16"),
    "cupola-w8a8": _compiled("q8_0.gguf", "--quant", "w8a8"),
    "cupola-w4a8": _compiled("q4_0.gguf", "--quant", "w4a8"),
    "cupola-w4a8-kv8": _compiled("q4_0.gguf", "--quant", "w4a8", "--kv-dtype", "int8"),
    "cupola-w4a8-w4": _compiled("q4_0.gguf", "--quant", "w4a8", "--embedding", "w4"),
    "cupola-w4a8-w4-kv8": _compiled("q4_0.gguf", "--quant", "w4a8", "--embedding", "w4", "--kv-dtype", "int8"),
    "cupola-w4a8-avx2": _compiled("q4_0.gguf", "--quant", "w4a8", "--target", "cpu:avx2"),
    "cupola-w4a8-kv8-avx2": _compiled("q4_0.gguf", "--quant", "w4a8", "--kv-dtype", "int8", "--target", "cpu:avx2"),
    "cupola-w4a8-avx512vnni": _compiled("q4_0.gguf", "--quant", "w4a8", "--target", "cpu:avx512vnni"),
    "cupola-w4a8-kv8-avx512vnni": _compiled("q4_0.gguf", "--quant", "w4a8", "--kv-dtype", "int8", "--target", "cpu:avx512vnni"),
}


@dataclass(frozen=True)
class Entrant:
    """One engine on one file: `worker` runs in `venv`, and `setting` is the engine's own.

    `isa` is the instruction set that it is held to, "" if that is whatever the machine has: only those of one are compared. Engines that
    choose their kernels as they run are held to it by `variables`, the others are built for it.
    """

    worker: str
    venv: str
    file: str
    about: str
    setting: str = ""
    isa: str = ""
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def is_peer(self) -> bool:
        """True for another project's engine."""
        return self.venv != "cupola"


_ONEDNN = {"avx512vnni": (("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI"),)}  # the library under OpenVINO


def _cupola(name: str, about: str, isa: str = "") -> Entrant:
    return Entrant("on_cupola.py", "cupola", name, about, isa=isa)


def _llama_cpp(file: str, about: str, setting: str, isa: str = "") -> Entrant:
    return Entrant("on_llama_cpp.py", f"llama.cpp-{isa}" if isa else "llama.cpp", file, about, setting, isa)


def _openvino(file: str, about: str, setting: str = "", isa: str = "") -> Entrant:
    return Entrant("on_openvino.py", "openvino", file, about, setting, isa, _ONEDNN.get(isa, ()))


# Of several settings each is a peer's best somewhere: llama.cpp prefills faster with flash attention and, after a long context, decodes
# faster without it; OpenVINO prefills faster in bf16, its choice on CPUs that multiply it, and decodes faster in f32.
ENTRANTS = {
    "cupola-f32": _cupola("cupola-f32", "f32 weights and K/V"),
    "cupola-bf16": _cupola("cupola-bf16", "bf16 weights and K/V"),
    "cupola-w8a8": _cupola("cupola-w8a8", "the Q8_0 file's blocks"),
    "cupola-w4a8": _cupola("cupola-w4a8", "the Q4_0 file's blocks, 8-bit embedding"),
    "cupola-w4a8-kv8": _cupola("cupola-w4a8-kv8", "the same, K/V int8"),
    "cupola-w4a8-w4": _cupola("cupola-w4a8-w4", "the Q4_0 file's blocks, 4-bit embedding"),
    "cupola-w4a8-w4-kv8": _cupola("cupola-w4a8-w4-kv8", "the same, K/V int8"),
    "llama.cpp-q4_0": _llama_cpp("q4_0.gguf", "flash attention, K/V f16", "flash f16"),
    "llama.cpp-q4_0-kv8": _llama_cpp("q4_0.gguf", "flash attention, K/V q8_0", "flash q8_0"),
    "llama.cpp-q4_0-plain": _llama_cpp("q4_0.gguf", "no flash attention, K/V f16", "plain f16"),
    "llama.cpp-q8_0": _llama_cpp("q8_0.gguf", "flash attention, K/V f16", "flash f16"),
    "openvino-q4_0": _openvino("q4_0.gguf", "K/V u8, precision of its choice"),
    "openvino-q4_0-f32": _openvino("q4_0.gguf", "K/V u8, f32", "f32"),
    "openvino-q8_0": _openvino("q8_0.gguf", "K/V u8, precision of its choice"),
    "ctranslate2-int8": Entrant("on_ctranslate2.py", "ctranslate2", "ctranslate2", "int8", "int8"),
    "transformers-bf16": Entrant("on_transformers.py", "transformers", "huggingface", "eager, SDPA, bf16", "bfloat16"),
    "transformers-f32": Entrant("on_transformers.py", "transformers", "huggingface", "eager, SDPA, f32", "float32"),
    "cupola-w4a8-avx2": _cupola("cupola-w4a8-avx2", "the Q4_0 file's blocks, 8-bit embedding", "avx2"),
    "cupola-w4a8-kv8-avx2": _cupola("cupola-w4a8-kv8-avx2", "the same, K/V int8", "avx2"),
    "llama.cpp-q4_0-avx2": _llama_cpp("q4_0.gguf", "flash attention, K/V f16", "flash f16", "avx2"),
    "llama.cpp-q4_0-kv8-avx2": _llama_cpp("q4_0.gguf", "flash attention, K/V q8_0", "flash q8_0", "avx2"),
    "llama.cpp-q4_0-plain-avx2": _llama_cpp("q4_0.gguf", "no flash attention, K/V f16", "plain f16", "avx2"),
    "cupola-w4a8-avx512vnni": _cupola("cupola-w4a8-avx512vnni", "the Q4_0 file's blocks, 8-bit embedding", "avx512vnni"),
    "cupola-w4a8-kv8-avx512vnni": _cupola("cupola-w4a8-kv8-avx512vnni", "the same, K/V int8", "avx512vnni"),
    "llama.cpp-q4_0-avx512vnni": _llama_cpp("q4_0.gguf", "flash attention, K/V f16", "flash f16", "avx512vnni"),
    "llama.cpp-q4_0-kv8-avx512vnni": _llama_cpp("q4_0.gguf", "flash attention, K/V q8_0", "flash q8_0", "avx512vnni"),
    "llama.cpp-q4_0-plain-avx512vnni": _llama_cpp("q4_0.gguf", "no flash attention, K/V f16", "plain f16", "avx512vnni"),
    "openvino-q4_0-avx512vnni": _openvino("q4_0.gguf", "K/V u8, f32, which is its choice there", "f32", "avx512vnni"),
}
ISAS = tuple(dict.fromkeys(entrant.isa for entrant in ENTRANTS.values() if entrant.isa))  # others than the machine's own


@dataclass(frozen=True)
class Workload:
    """Streams of `prompt_len` tokens in and `num_tokens` out; `rate` makes tokens a second of its times."""

    title: str
    prompt_len: int
    num_tokens: int
    num_streams: int
    rate: Callable[[Workload, Times], float]

    def prompts(self) -> list[list[int]]:
        """The same ids for everyone."""
        return [random_tokens(self.prompt_len, stream) for stream in range(self.num_streams)]


def random_tokens(length: int, seed: int) -> list[int]:
    """Ids of ordinary tokens: SmolLM2's special ones come first."""
    return random.Random(seed).choices(range(1000, 49000), k=length)


def _prompt_rate(work: Workload, times: Times) -> float:
    return work.num_streams * work.prompt_len / times.first


def _next_token_rate(work: Workload, times: Times) -> float:
    return work.num_streams * (work.num_tokens - 1) / (times.total - times.first)


def _output_rate(work: Workload, times: Times) -> float:
    return work.num_streams * work.num_tokens / times.total


WORKLOADS = {
    "prefill": Workload("prefill of 512", 512, 1, 1, _prompt_rate),
    "decode": Workload("decode", 16, 129, 1, _next_token_rate),
    "decode-512": Workload("decode at 512", 512, 129, 1, _next_token_rate),
    "decode-2048": Workload("decode at 2,048", 2048, 129, 1, _next_token_rate),
    "streams-16": Workload("16 streams, 64 in and 128 out", 64, 128, 16, _output_rate),
}
FIRST_PROMPT = random_tokens(16, 0)
