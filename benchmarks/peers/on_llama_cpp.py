"""llama.cpp by its C interface: one context for a single sequence, one for many."""

from __future__ import annotations

import ctypes
import time

import llama_cpp as c
import numpy as np
from protocol import CHUNK, KV_TOKENS, MAX_STREAMS, Times, serve

_ATTENTION = {"flash": c.LLAMA_FLASH_ATTN_TYPE_ENABLED, "plain": c.LLAMA_FLASH_ATTN_TYPE_DISABLED}
_KV_TYPES = {"f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0}


class LlamaCpp:
    """A model with its contexts, made when first needed; `setting` is "flash" or "plain" attention and the type of K/V: "flash f16"."""

    version = c.__version__

    def __init__(self) -> None:
        c.llama_backend_init()
        self._log = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._log, ctypes.c_void_p(0))
        self.about = c.llama_print_system_info().decode()
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def load(self, model: str, threads: int, setting: str) -> None:
        """Maps the GGUF file; llama.cpp repacks its tensors for this CPU."""
        attention, kv_type = setting.split()
        self._threads, self._attention, self._kv_type = threads, _ATTENTION[attention], _KV_TYPES[kv_type]
        self._model = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp can't load {model}")
        self._vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._batch = c.llama_batch_init(CHUNK, 0, 1)

    def _context(self, num_streams: int) -> ctypes.c_void_p:
        if num_streams not in self._contexts:
            params = c.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = KV_TOKENS, CHUNK, CHUNK, num_streams
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type, params.type_k, params.type_v = self._attention, self._kv_type, self._kv_type
            self._contexts[num_streams] = c.llama_init_from_model(self._model, params)
        return self._contexts[num_streams]

    def _decode(self, context: ctypes.c_void_p, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Computes rows of (token, position, stream, wants a token); returns the greedy token of each stream that wants one."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, stream, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position, 1, stream, wanted
        if code := c.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode answered {code}")
        wanted_rows = [(i, row[2]) for i, row in enumerate(rows) if row[3]]
        return {stream: int(np.argmax(self._logits(context, i))) for i, stream in wanted_rows}

    def _logits(self, context: ctypes.c_void_p, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(c.llama_get_logits_ith(context, row), (self._vocab_size,))

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """All prompts in chunks, then one step a token for all streams together."""
        context = self._context(1 if len(prompts) == 1 else MAX_STREAMS)
        c.llama_memory_clear(c.llama_get_memory(context), True)
        start = time.perf_counter()
        rows = [(token, i, s, i == len(prompt) - 1) for s, prompt in enumerate(prompts) for i, token in enumerate(prompt)]
        tokens: dict[int, int] = {}
        for begin in range(0, len(rows), CHUNK):
            tokens |= self._decode(context, rows[begin : begin + CHUNK])
        first = time.perf_counter() - start
        for step in range(num_tokens - 1):
            tokens = self._decode(context, [(tokens[s], len(prompt) + step, s, True) for s, prompt in enumerate(prompts)])
        return Times(first, time.perf_counter() - start)


if __name__ == "__main__":
    serve(LlamaCpp())
