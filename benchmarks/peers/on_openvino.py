"""OpenVINO GenAI's continuous batching pipeline on a GGUF file, without prefix caching; K/V in u8, its default for a CPU."""

from __future__ import annotations

import time

import numpy as np
import openvino
import openvino_genai
from protocol import KV_TOKENS, MAX_STREAMS, Times, serve


class OpenVino:
    """A pipeline stepped by hand, so that the first token's time is known; `setting` is a precision, or "" for OpenVINO's choice."""

    version = openvino_genai.__version__.split("-")[0]
    about = " ".join(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    def load(self, model: str, threads: int, setting: str) -> None:
        """Reads the GGUF file and compiles its graph."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = MAX_STREAMS, KV_TOKENS
        scheduler.num_kv_blocks = KV_TOKENS // 32 + MAX_STREAMS
        properties = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": setting} if setting else {})
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """Queues all prompts and steps until none is left."""
        config = openvino_genai.GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        start = time.perf_counter()
        waiting = [self._pipeline.add_request(i, ids, config) for i, ids in enumerate(inputs)]
        handles, first = list(waiting), 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if not first and all(handle.can_read() for handle in handles):
                first = time.perf_counter() - start
        total = time.perf_counter() - start
        for handle in handles:
            lengths = [len(output.generated_ids) for output in handle.read_all()]
            if lengths != [num_tokens]:
                raise RuntimeError(f"asked for {num_tokens} tokens, got {lengths}")
        return Times(first, total)


if __name__ == "__main__":
    serve(OpenVino())
