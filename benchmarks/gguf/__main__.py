"""A GGUF file by cupola, with its tensors as they are, beside llama.cpp and beside float32: docs/gguf_quality.md.

    python benchmarks/gguf qwen2.5-0.5b-q4_k_m.gguf [--llama-python …/bin/python] [--targets cpu,cpu:batch-invariant]

All see the same tokens. Windows of 512 tokens of Python's documentation stand side by side, and their second halves are scored, as
llama.cpp's perplexity and `cupola eval` do it. Then each continues ten prompts greedily. float32 is transformers on values that the gguf
package makes of the file's blocks. `make bench-peers` makes llama.cpp's environment. What an engine has done is not done again until
build/gguf is removed. Logits take 0.6 MB a token on disk, of two engines at a time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import numpy as np
import typer
from figures import Scores, agreement, differences, perplexity_ratio, score
from report import write_report
from worker import Job

from cupola import Artifact
from cupola.runtime.text.tokenizer import Tokenizer, load_tokenizer

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "gguf"
LLAMA_PYTHON = HERE.parents[1] / "build" / "peers" / "llama.cpp" / "bin" / "python"
RESULTS = HERE.parent / "results" / "gguf.json"
PEER, EXACT, SCHEMES = "llama.cpp", "float32", ("keep-a8", "keep-a16")
WINDOW, NUM_TOKENS = 512, 64
SAMPLE = 2048  # characters whose tokens are compared
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "In 1969, the first people",
    "import numpy as np\n\nx =",
    "A binary search tree is a data structure",
    "# Sort a list of numbers without sorted()\ndef",
    "Water boils at",
    "SELECT name, COUNT(*) FROM",
    "The main difference between a list and a tuple in Python is",
    "Once upon a time, in a village by the sea,",
)


@dataclass(frozen=True)
class Engine:
    """A program that computes, what from, and a setting of its own."""

    python: str
    script: str
    model: Path
    setting: str = ""


@dataclass(frozen=True)
class Comparison:
    """The job that all engines do with a file; each has a folder for what it found.

    Attributes:
        engines: by name, llama.cpp first and float32 second: it follows what llama.cpp said, and others are held to its logits.
    """

    folder: Path
    engines: dict[str, Engine]
    windows: list[list[int]]
    prompts: list[list[int]]
    threads: int
    sample: str

    def folder_of(self, name: str) -> Path:
        """An engine's folder."""
        return self.folder / name.replace(":", "-").replace(" ", "-")

    def found(self, name: str) -> Any:
        """An engine's answers, and its tokens of the sample."""
        return json.loads((self.folder_of(name) / "answers.json").read_text(encoding="utf-8"))

    def compute(self, name: str) -> None:
        """Has an engine do its work, unless it has done that already. Raises typer.Exit if it fails, with what it said above."""
        forced: list[list[int]] = [[] for _ in self.prompts]
        if name == EXACT:
            forced = [[step["token"] for step in steps] for steps in self.found(PEER)["answers"]]
        folder, engine = self.folder_of(name), self.engines[name]
        job = Job(str(engine.model), engine.setting, self.threads, self.windows, self.prompts, forced, NUM_TOKENS, self.sample, str(folder))
        file, text = folder / "job.json", json.dumps(asdict(job))
        if (folder / "answers.json").is_file() and file.read_text(encoding="utf-8") == text:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
        print(f"{name} …", file=sys.stderr, flush=True)
        if subprocess.run([engine.python, str(HERE / engine.script), str(file)], check=False).returncode:
            raise typer.Exit(1)

    def scores(self, name: str) -> Scores:
        """An engine's scores, for which float32's logits must be there; its own are deleted once they are scored."""
        folder = self.folder_of(name)
        stored, logits = folder / "scores.npz", folder / "logits.npy"
        if not stored.is_file():
            targets = np.array([window[WINDOW // 2 + 1 :] for window in self.windows])
            reference = np.load(self.folder_of(EXACT) / "logits.npy", mmap_mode="r")
            np.savez(stored, **asdict(score(np.load(logits, mmap_mode="r"), reference, targets)))
        if name != EXACT:
            logits.unlink(missing_ok=True)
        return Scores(**np.load(stored))

    def lines(self) -> list[dict[str, Any]]:
        """The figures of every engine, computed if need be."""
        for name in (PEER, EXACT):
            self.compute(name)
        peer, exact = self.scores(PEER), self.scores(EXACT)
        answers, exact_answers = self.found(PEER)["answers"], self.found(EXACT)["answers"]
        found = []
        for name in self.engines:
            self.compute(name)
            scores, own = self.scores(name), self.found(name)["answers"]
            is_cupola = name not in (PEER, EXACT)
            found.append({
                "engine": name,
                "perplexity": scores.perplexity,
                "to_llama_cpp": perplexity_ratio(scores, peer),
                "to_float32": perplexity_ratio(scores, exact),
                "divergence": float(scores.divergences.mean()),
                "same_top": float(scores.same_top.mean()),
                "same_tokens": [agreement(own, answers), sum(map(len, answers))] if is_cupola else None,
                "differences": [asdict(each) for each in differences(own, answers, exact_answers)] if is_cupola else [],
            })  # fmt: skip
        return found


def compile_file(file: Path, scheme: str, targets: str) -> Path:
    """The artifact of a file with K and V in float16, as llama.cpp has them, made unless it is there."""
    out = BUILD / file.stem / scheme
    if not (out / "manifest.json").is_file():
        options = ["--quant", scheme, "--kv-dtype", "f16", "--target", targets, "--out", str(out)]
        subprocess.run([sys.executable, "-P", "-m", "cupola", "compile", str(file), *options], check=True, stdout=sys.stderr)
    return out


def windows_of(tokenizer: Tokenizer, bos: int | None, text: str, count: int) -> list[list[int]]:
    """The first windows of a text; where there is a BOS token, each begins with it."""
    ids = tokenizer.encode(text, max_tokens=len(text) + 1)[: count * WINDOW]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    return [[ids[0], *window[1:]] for window in windows] if ids[0] == bos else windows


def main(
    file: Annotated[Path, typer.Argument(help="A GGUF file.", exists=True)],
    llama_python: Annotated[Path, typer.Option(help="An interpreter that has llama-cpp-python.")] = LLAMA_PYTHON,
    targets: Annotated[str, typer.Option(help="Targets that this machine runs, separated by commas.")] = "cpu",
    windows: Annotated[int, typer.Option(min=1, help="Windows of text.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads for every engine.")] = 2,
) -> None:
    """Compare a file's quality by cupola, llama.cpp and float32."""
    if not llama_python.is_file():
        raise typer.BadParameter(f"{llama_python} is not there: run make bench-peers, or name one that has llama-cpp-python")
    file = file.resolve()
    artifacts = {scheme: Artifact.open(compile_file(file, scheme, targets)) for scheme in SCHEMES}
    manifest, tokenizer = artifacts[SCHEMES[0]].manifest, load_tokenizer(artifacts[SCHEMES[0]])
    assert tokenizer is not None  # GGUF files have one
    engines = {PEER: Engine(str(llama_python), "on_llama_cpp.py", file), EXACT: Engine(sys.executable, "on_transformers.py", file)}
    for scheme, artifact in artifacts.items():
        devices = [library.target.device for library in artifact.manifest.libraries]
        engines |= {f"{scheme} {device}": Engine(sys.executable, "on_cupola.py", artifact.path, device) for device in devices}
    text = "\n\n".join(topics[name] for name in sorted(topics))
    some = windows_of(tokenizer, manifest.model.bos_token_id, text, windows)
    prompts = [tokenizer.encode(prompt, max_tokens=WINDOW) for prompt in PROMPTS]
    comparison = Comparison(BUILD / file.stem, engines, some, prompts, threads, text[:SAMPLE])
    lines = comparison.lines()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    same = comparison.found(PEER)["token_ids"] == comparison.found(list(engines)[-1])["token_ids"]
    notes = {scheme: [note for note in artifact.manifest.notes if "keep" in note] for scheme, artifact in artifacts.items()}
    known[file.name] = {
        "windows": windows,
        "tokens": windows * (WINDOW // 2 - 1),
        "same_tokenization": same,
        "notes": notes,
        "engines": lines,
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(write_report(known))


if __name__ == "__main__":
    typer.run(main)
