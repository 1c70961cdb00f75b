"""CTranslate2's generator on a model converted from transformers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ctranslate2
from protocol import MAX_STREAMS, Times, serve


class CTranslate2:
    """A generator; `setting` is its compute type."""

    version = ctranslate2.__version__
    about = ", ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))

    def load(self, model: str, threads: int, setting: str) -> None:
        """Reads the folder that its converter wrote."""
        self._generator = ctranslate2.Generator(model, device="cpu", compute_type=setting, intra_threads=threads, inter_threads=1)
        self._vocabulary: list[str] = json.loads((Path(model) / "vocabulary.json").read_text(encoding="utf-8"))

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """One batch; a callback a token tells when each stream has its first."""
        words = [[self._vocabulary[token] for token in prompt] for prompt in prompts]
        firsts: list[float] = []

        def note(result: ctranslate2.GenerationStepResult) -> bool:
            if result.step == 0:
                firsts.append(time.perf_counter() - start)
            return False

        start = time.perf_counter()
        results = self._generator.generate_batch(
            words, max_batch_size=MAX_STREAMS, max_length=num_tokens, min_length=num_tokens, sampling_topk=1,
            include_prompt_in_result=False, callback=note,
        )  # fmt: skip
        total = time.perf_counter() - start
        lengths = {len(result.sequences_ids[0]) for result in results}
        if lengths != {num_tokens}:
            raise RuntimeError(f"asked for {num_tokens} tokens, got {lengths}")
        return Times(max(firsts), total)


if __name__ == "__main__":
    serve(CTranslate2())
