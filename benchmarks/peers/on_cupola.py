"""cupola's `LLM` on a compiled artifact, without prefix caching."""

from __future__ import annotations

import os
import time

from protocol import CHUNK, KV_TOKENS, MAX_STREAMS, Times, serve

from cupola import LLM, Artifact, SamplingParams, __version__


class Cupola:
    """An artifact ready to generate."""

    version = __version__
    about = ""

    def load(self, model: str, threads: int, setting: str) -> None:
        """Loads the artifact, with pages for `KV_TOKENS` tokens."""
        os.environ["CUPOLA_NUM_THREADS"] = str(threads)
        artifact = Artifact.open(model)
        kv = artifact.manifest.kv
        self._llm = LLM(
            artifact, max_num_seqs=MAX_STREAMS, max_num_batched_tokens=CHUNK, enable_prefix_caching=False,
            kv_memory=KV_TOKENS // kv.block_size * kv.bytes_per_block,
        )  # fmt: skip

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """One call of `generate`, which batches continuously."""
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        start, since = time.perf_counter(), time.monotonic()
        outputs = self._llm.generate(prompts, params)
        total = time.perf_counter() - start
        firsts = [output.metrics.first_token_time for output in outputs]
        return Times(max(first - since for first in firsts if first is not None), total)


if __name__ == "__main__":
    serve(Cupola())
