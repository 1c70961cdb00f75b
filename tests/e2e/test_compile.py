"""Promises of compiling: memory, speed of a second start, the runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys

import cupola
from tests.conftest import Compiled

ANSWER = """
import json, sys
import cupola
llm = cupola.LLM(sys.argv[1])
out = llm.chat([{"role": "user", "content": "What is the capital of France?"}], cupola.SamplingParams(temperature=0, max_tokens=32))
print(json.dumps({"text": out[0].outputs[0].text, "modules": [m for m in ("torch", "transformers", "gguf", "onnx") if m in sys.modules]}))
"""
MEMORY = """
import sys
import cupola
llm = cupola.LLM(sys.argv[1], kv_memory="64MB", enable_prefix_caching=False)
params = cupola.SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
for length in (16, *range(512, 256, -32)):  # each wants tensors of its own sizes
    llm.generate([list(range(length))], params)
llm.generate([[i] for i in range(16)], params)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
weights = sum(file.num_bytes for file in llm.artifact.manifest.files if file.name.startswith("weights"))
print(int(peak.split()[1]) * 1024 - weights - 64_000_000)
"""


def test_memory_stays_under_the_artifacts_size_plus_a_bound(smollm2: Compiled) -> None:
    print(f"peak {smollm2.peak_bytes / 1e6:.0f} MB for an artifact of {smollm2.num_bytes / 1e6:.0f} MB")
    assert smollm2.peak_bytes < smollm2.num_bytes + 1.5e9


def test_the_answer_is_right_and_loads_no_compiler(smollm2: Compiled) -> None:
    done = subprocess.run([sys.executable, "-c", ANSWER, str(smollm2.path)], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer == {"text": "The capital of France is Paris.", "modules": []}


def test_running_takes_little_beside_weights_and_pages(smollm2: Compiled) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(smollm2.path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120e6


def test_a_tied_embedding_is_stored_once(smollm2: Compiled) -> None:
    manifest = cupola.Artifact.open(smollm2.path, verify=False).manifest
    assert sum(weight.shape[0] * 32 >= manifest.model.vocab_size for weight in manifest.weights if len(weight.shape) == 3) == 1
