"""cupola's `LLM` on an artifact; the setting is the device."""

from __future__ import annotations

import os
from collections.abc import Sequence

from worker import NUM_LIKELIEST, Float32, Job, Step, work

from cupola import LLM, SamplingParams


class Cupola:
    """An artifact ready to generate."""

    def load(self, job: Job) -> None:
        """Opens the artifact."""
        os.environ["CUPOLA_NUM_THREADS"] = str(job.threads)
        self._llm = LLM(job.model, max_num_seqs=1, enable_prefix_caching=False, max_logprobs=NUM_LIKELIEST, device=job.setting or None)

    def logits(self, token_ids: Sequence[int], first: int) -> Float32:
        """As `cupola eval` has them."""
        return self._llm.logits(token_ids)[first:]

    def answer(self, prompt: Sequence[int], forced: Sequence[int], num_tokens: int) -> list[Step]:
        """By `generate`, whose log-probabilities are logits less one constant a step."""
        params = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=NUM_LIKELIEST, ignore_eos=True, detokenize=False)
        [output] = self._llm.generate([{"prompt_token_ids": list(prompt)}], params)
        completion = output.outputs[0]
        assert completion.logprobs is not None
        steps = []
        for token, found in zip(completion.token_ids, completion.logprobs, strict=True):
            likeliest = sorted(found, key=lambda id, found=found: -found[id].logprob)
            steps.append(Step(token, likeliest, [found[id].logprob for id in likeliest]))
        return steps

    def tokenize(self, text: str) -> list[int]:
        """With the special tokens that the artifact has in front."""
        return self._llm.get_tokenizer().encode(text, max_tokens=len(text) + 1)


if __name__ == "__main__":
    work(Cupola())
