"""llama.cpp by its C interface, with K and V in float16."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp as c
import numpy as np
from worker import Float32, Job, Step, work

MARGIN = 8  # tokens of context that nobody needs


class LlamaCpp:
    """One context for a single sequence."""

    def load(self, job: Job) -> None:
        """Maps the file."""
        c.llama_backend_init()
        self._log = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._log, ctypes.c_void_p(0))
        self._model = c.llama_model_load_from_file(job.model.encode(), c.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp can't load {job.model}")
        self._vocab = c.llama_model_get_vocab(self._model)
        self._vocab_size = c.llama_vocab_n_tokens(self._vocab)
        longest = max(len(job.windows[0]), max(map(len, job.prompts)) + job.num_tokens) + MARGIN
        params = c.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = longest
        params.n_threads = params.n_threads_batch = job.threads
        self._context = c.llama_init_from_model(self._model, params)
        self._batch = c.llama_batch_init(longest, 0, 1)

    def _decode(self, token_ids: Sequence[int], start: int, first: int) -> Float32:
        batch, count = self._batch, len(token_ids)
        batch.n_tokens = count
        for i, token in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, start + i, 1, 0, i >= first
        if code := c.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {code}")
        rows = [np.ctypeslib.as_array(c.llama_get_logits_ith(self._context, i), (self._vocab_size,)) for i in range(first, count)]
        return np.stack(rows)

    def logits(self, token_ids: Sequence[int], first: int) -> Float32:
        """One batch."""
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        return self._decode(token_ids, 0, first)

    def answer(self, prompt: Sequence[int], forced: Sequence[int], num_tokens: int) -> list[Step]:
        """The prompt in one batch, then a token at a time."""
        steps = [Step.of(self.logits(prompt, len(prompt) - 1)[0])]
        while len(steps) < num_tokens:
            steps.append(Step.of(self._decode([steps[-1].token], len(prompt) + len(steps) - 1, 0)[0]))
        return steps

    def tokenize(self, text: str) -> list[int]:
        """With the special tokens that the file wants in front."""
        raw = text.encode()
        buffer = (c.llama_token * (len(raw) + MARGIN))()
        count = c.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), True, False)
        return list(buffer[:count])


if __name__ == "__main__":
    work(LlamaCpp())
