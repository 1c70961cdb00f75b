"""transformers on torch's CPU kernels, eager, with the model's own dynamic cache."""

from __future__ import annotations

import time

import torch
import transformers
from protocol import Times, serve


class Transformers:
    """A causal LM; `setting` is the dtype of its weights and arithmetic."""

    version = f"{transformers.__version__}, torch {torch.__version__}"
    about = ", ".join(
        (
            torch.backends.cpu.get_cpu_capability(),
            f"oneDNN {'on' if torch.backends.mkldnn.is_available() else 'off'}",
            f"AMX {'on' if torch.cpu._is_amx_tile_supported() else 'off'}",
        )
    )

    def load(self, model: str, threads: int, setting: str) -> None:
        """Reads a checkpoint's folder."""
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, setting)).eval()

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """One forward over all prompts, which have one length, then one a token."""
        start = time.perf_counter()
        tokens, cache = self._step(torch.tensor(prompts), None)
        first = time.perf_counter() - start
        for _ in range(num_tokens - 1):
            tokens, cache = self._step(tokens, cache)
        return Times(first, time.perf_counter() - start)

    def _step(self, tokens: torch.Tensor, cache: transformers.Cache | None) -> tuple[torch.Tensor, transformers.Cache]:
        output = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values


if __name__ == "__main__":
    serve(Transformers())
