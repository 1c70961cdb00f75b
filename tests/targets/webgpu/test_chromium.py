"""A layer of SmolLM2's size in a headless Chromium, whose compiler of WGSL is strict: a page runs the shaders of a compiled model."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

import cupola
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.plan import BUFFER, CONSTANT, INPUT, Plan, num_bytes
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device.weights import map_weights
from cupola.targets.gpu.lowering import DeviceCode
from cupola.targets.webgpu import build
from tests.browser import TIMEOUT_MS, find_chromium

FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
]
PROMPT = [3, 1, 4, 1, 5, 9, 2]
BLOCK = 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed: make browser")
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text("<!doctype html>")  # WebGPU wants a page from a file or a secure server
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            page = browser.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            page.goto(file.as_uri())
            yield page
        finally:
            browser.close()


class Written:
    """The plan, the launches and the shaders of a library, taken as it is compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.code: DeviceCode
        self.plan: Plan
        self.shaders: dict[str, str]
        write_launches, write_shaders = build.write_launches, build.write_shaders

        def launches(mod: Any, plan: Plan, *args: Any) -> tuple[DeviceCode, Path]:
            self.plan = plan
            self.code, file = write_launches(mod, plan, *args)
            return self.code, file

        def shaders(device: Any, target: Any) -> dict[str, str]:
            self.shaders = write_shaders(device, target)
            return self.shaders

        monkeypatch.setattr(build, "write_launches", launches)
        monkeypatch.setattr(build, "write_shaders", shaders)

    def step(
        self, inputs: tuple[TensorSpec, ...], given: Mapping[str, np.ndarray], sizes: Mapping[str, int], result: str
    ) -> dict[str, Any]:
        """A step as `run.js` takes it. Of inputs that are not given, as results are, only the size is known."""
        kinds = {INPUT: inputs, CONSTANT: self.plan.constants, BUFFER: self.plan.buffers}
        assert not self.plan.constants or "constant.0" in given
        places, tensors = {}, []
        for kind, specs in kinds.items():
            for index, spec in enumerate(specs):
                places[kind, index] = len(tensors)
                array = given.get(f"constant.{index}" if kind == CONSTANT else spec.name)
                data = None if array is None else base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
                tensors.append({"bytes": max(16, num_bytes(spec, sizes)), "data": data})
        launches = []
        for call in self.plan.calls:
            values = [*call.pointers, *(evaluate(number, sizes) for number in (*call.numbers, *call.sizes))]
            names = {f"a{i}": value for i, value in enumerate(values) if isinstance(value, int)}
            for launch in self.code.launches[call.kernel]:
                blocks = [evaluate(extent, names) for extent in launch.extents[:3]]
                if all(blocks):
                    pointers = [values[int(value[1:])] for type_, value in launch.arguments if not type_]
                    bound = [places[place.kind, place.index] for place in pointers]
                    numbers = [evaluate(value, names) for type_, value in launch.arguments if type_]
                    launches.append({"kernel": launch.symbol, "tensors": bound, "numbers": [*numbers, blocks[0] - 1], "blocks": blocks})
        index = next(i for i, spec in enumerate(inputs) if spec.name == result)
        return {"kernels": self.shaders, "launches": launches, "tensors": tensors, "result": places[INPUT, index]}


def test_a_layer_of_smollm2s_size(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = transformers.AutoConfig.for_model("llama", **shape, num_hidden_layers=1, vocab_size=256, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0].numpy()
    written = Written(monkeypatch)
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", target="webgpu", quant="f32", block_size=BLOCK, context=64)
    n = len(PROMPT)
    step = {
        "tokens": PROMPT, "positions": range(n), "query_starts": [0, n], "context_lens": [n], "logit_rows": range(n),
        "slots.0": range(n), "block_tables.0": [[0, 1]],
    }  # fmt: skip
    given = {name: np.array(values, np.int32) for name, values in step.items()} | dict(map_weights(artifact))
    angles = 1 / config.rope_parameters["rope_theta"] ** (np.arange(0, 64, 2) / 64)
    given["constant.0"] = angles.astype(np.float32)
    sizes = {"n": n, "b": 1, "r": n, "max_blocks_0": 2, "num_blocks_0": 2}
    script = Path(__file__).with_name("run.js").read_text(encoding="utf-8")
    encoded = page.evaluate(script, written.step(artifact.manifest.function("forward").inputs, given, sizes, "logits"))
    found = np.frombuffer(base64.b64decode(encoded), np.float32)[: expected.size].reshape(expected.shape)
    assert np.abs(found - expected).max() < 1e-4
