"""cupola: compile large language models for your hardware, and run them.

    artifact = cupola.compile("smollm2")
    llm = cupola.LLM(artifact)
    for piece in llm.stream("Once upon a time"):
        print(piece, end="")

A name is imported when it is first used: the runtime loads no compiler, and the compiler no runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cupola.compiler.compile import compile
    from cupola.runtime.artifact.folder import Artifact
    from cupola.runtime.device.choose import choose_library
    from cupola.runtime.engine.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from cupola.runtime.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from cupola.runtime.engine.sampling_params import SamplingParams
    from cupola.runtime.engine.speculative import check_speculative
    from cupola.runtime.errors import (
        ArtifactError,
        ContextLengthError,
        CupolaError,
        EngineError,
        InputError,
        OptionError,
        RequestError,
        SourceError,
        UnsupportedError,
    )
    from cupola.runtime.llm import LLM
    from cupola.runtime.load_generator.load_test import LoadTest
    from cupola.runtime.load_generator.report import LoadReport
    from cupola.runtime.load_generator.run import run_load_test
    from cupola.runtime.measure.benchmark import Benchmark, SpeedTest
    from cupola.runtime.measure.bound import StepWork, decode_work, prompt_work
    from cupola.runtime.measure.evaluation import Comparison, Estimate, Evaluation, evaluate
    from cupola.runtime.measure.machines import Machine, find_machine
    from cupola.runtime.measure.profile import KernelTime, Profile, Roofline, measure_roofline, profile
    from cupola.runtime.measure.speculation_benchmark import SpeculationSpeed, measure_speculation
    from cupola.runtime.server.serve import serve
    from cupola.runtime.structured.structured_outputs import StructuredOutputs

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Artifact",
    "ArtifactError",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "Benchmark",
    "Comparison",
    "CompletionOutput",
    "ContextLengthError",
    "CupolaError",
    "EngineError",
    "Estimate",
    "Evaluation",
    "InputError",
    "KernelTime",
    "LoadReport",
    "LoadTest",
    "Logprob",
    "Machine",
    "OptionError",
    "Profile",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "Roofline",
    "SamplingParams",
    "SourceError",
    "SpeculationSpeed",
    "SpeedTest",
    "StepWork",
    "StructuredOutputs",
    "UnsupportedError",
    "__version__",
    "check_speculative",
    "choose_library",
    "compile",
    "decode_work",
    "evaluate",
    "find_machine",
    "measure_roofline",
    "measure_speculation",
    "profile",
    "prompt_work",
    "run_load_test",
    "serve",
]

_MODULES = {
    "compile": "compiler.compile",
    "Artifact": "runtime.artifact.folder",
    "choose_library": "runtime.device.choose",
    "check_speculative": "runtime.engine.speculative",
    "LLM": "runtime.llm",
    **dict.fromkeys(("BeamSearchOutput", "BeamSearchParams", "BeamSearchSequence"), "runtime.engine.beam_search"),
    "Benchmark": "runtime.measure.benchmark",
    "SpeculationSpeed": "runtime.measure.speculation_benchmark",
    "SpeedTest": "runtime.measure.benchmark",
    "measure_speculation": "runtime.measure.speculation_benchmark",
    **dict.fromkeys(("KernelTime", "Profile", "Roofline", "measure_roofline", "profile"), "runtime.measure.profile"),
    **dict.fromkeys(("StepWork", "decode_work", "prompt_work"), "runtime.measure.bound"),
    **dict.fromkeys(("Machine", "find_machine"), "runtime.measure.machines"),
    "evaluate": "runtime.measure.evaluation",
    "Evaluation": "runtime.measure.evaluation",
    "Estimate": "runtime.measure.evaluation",
    "Comparison": "runtime.measure.evaluation",
    "LoadTest": "runtime.load_generator.load_test",
    "LoadReport": "runtime.load_generator.report",
    "run_load_test": "runtime.load_generator.run",
    "SamplingParams": "runtime.engine.sampling_params",
    "StructuredOutputs": "runtime.structured.structured_outputs",
    "serve": "runtime.server.serve",
    "CompletionOutput": "runtime.engine.outputs",
    "Logprob": "runtime.engine.outputs",
    "RequestMetrics": "runtime.engine.outputs",
    "RequestOutput": "runtime.engine.outputs",
    **{name: "runtime.errors" for name in __all__ if name.endswith("Error")},
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = f"{__name__}.{'.'.join(_MODULES[name].split('.')[:2])}"
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(folder):
            raise
        raise AttributeError(f"{name} is of {folder}, which this copy of cupola was made without; cupola itself has it") from None
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
