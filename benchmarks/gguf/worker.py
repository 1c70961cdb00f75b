"""An engine's part of the comparison, in a process of its own. Runs in every engine's environment, so it needs numpy alone.

The job is a JSON file: the model, what to compute, and the folder to leave it in.

    logits.npy     float32 [windows, scored positions, vocabulary]: after each token of a window's second half but the last
    answers.json   a list of steps for each prompt, and the tokens that the engine cuts the text into
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
NUM_LIKELIEST = 20


@dataclass(frozen=True)
class Job:
    """The work of one engine.

    Attributes:
        model: a GGUF file or an artifact.
        setting: the engine's own, such as a device.
        windows: token ids, of one length each.
        prompts: token ids.
        forced: for each prompt the tokens that follow it whatever the engine would have said; empty lists: what it says.
        num_tokens: to generate for each prompt.
        text: to tokenize, if the engine can.
        folder: for the results.
    """

    model: str
    setting: str
    threads: int
    windows: list[list[int]]
    prompts: list[list[int]]
    forced: list[list[int]]
    num_tokens: int
    text: str
    folder: str


@dataclass(frozen=True)
class Step:
    """A generated token, and the likeliest tokens there with their logits, or with logits less one constant."""

    token: int
    likeliest: list[int]
    logits: list[float]

    @staticmethod
    def of(logits: Float32) -> Step:
        """The greedy step of a row of logits."""
        some = np.argpartition(-logits, NUM_LIKELIEST)[:NUM_LIKELIEST]
        found = some[np.argsort(-logits[some], kind="stable")]
        return Step(int(found[0]), found.tolist(), logits[found].tolist())


class Engine(Protocol):
    """The interface that a worker's file implements."""

    def load(self, job: Job) -> None:
        """Makes the model ready."""

    def logits(self, token_ids: Sequence[int], first: int) -> Float32:
        """The logits after each token from place `first` on, [n, vocabulary], in one call of the model."""

    def answer(self, prompt: Sequence[int], forced: Sequence[int], num_tokens: int) -> list[Step]:
        """Continues a prompt greedily."""

    def tokenize(self, text: str) -> list[int] | None:
        """The text's tokens; None if that is not the engine's affair."""


def work(engine: Engine) -> None:
    """Does the job that the command line names."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    folder = Path(job.folder)
    engine.load(job)
    stored: Any = None
    for index, window in enumerate(job.windows):
        rows = engine.logits(window, len(window) // 2)[:-1]
        if stored is None:
            shape = (len(job.windows), *rows.shape)
            stored = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, shape)
        stored[index] = rows
    answers = [engine.answer(prompt, forced, job.num_tokens) for prompt, forced in zip(job.prompts, job.forced, strict=True)]
    found = {"answers": [[asdict(step) for step in steps] for steps in answers], "token_ids": engine.tokenize(job.text)}
    (folder / "answers.json").write_text(json.dumps(found), encoding="utf-8")
