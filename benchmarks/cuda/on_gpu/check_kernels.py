"""Every kernel of the catalogue on this machine's GPU, against float64 results that came with the package.

    python check_kernels.py [--out results.json]

A kernel is right if no element is off by more than its slack, which the reference states. Each runs twice, and must give the same bits.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from package import HERE, choose_folder, gpu_name

from cupola.runtime.artifact.arrays import numpy_dtype
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.plan import ALIGNMENT
from cupola.runtime.device.accelerator import Accelerator, open_device
from cupola.runtime.device.interface import Tensor
from cupola.runtime.errors import CupolaError

Array = np.ndarray[Any, Any]


class Kernels:
    """The library of all kernels."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "lib.so"))
        open_device(self._library, folder.parent.name)
        self.device = Accelerator(self._library)

    def run(self, case: Mapping[str, Any], arrays: Sequence[Array]) -> Array:
        """Runs a case's calls on what it is given, in order. Raises EngineError, RuntimeError."""
        sizes = _sizes(case, arrays)
        tensors = self._bring(case, arrays, sizes)
        buffers, workspace = self._buffers(case, sizes)
        for call in case["calls"]:
            places = {"input": [tensor.address for tensor in tensors], "buffer": buffers}
            pointers = [ctypes.c_void_p(places[place["kind"]][place["index"]]) for place in call["pointers"]]
            numbers = [ctypes.c_int64(evaluate(size, sizes)) for size in (*call["numbers"], *call["sizes"])]
            if code := self._library[f"cupola_kernel_{call['kernel']}"](*pointers, *numbers):
                raise RuntimeError(f"{call['kernel']} gives {code}")
        result = self.device.download(tensors[case["result"]])
        del workspace
        return result

    def _bring(self, case: Mapping[str, Any], arrays: Sequence[Array], sizes: Mapping[str, int]) -> list[Tensor]:
        given, tensors = iter(arrays), []
        for spec in case["inputs"]:
            tensor = self.device.zeros(spec["dtype"], tuple(evaluate(size, sizes) for size in spec["shape"]))
            if spec["is_given"]:
                self.device.upload(next(given), tensor)
            tensors.append(tensor)
        return tensors

    def _buffers(self, case: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[list[int], list[Tensor]]:
        storages = [self.device.zeros("uint8", (evaluate(size, sizes) + ALIGNMENT,)) for size in case["storages"]]
        return [storages[b["storage"]].address + evaluate(b["offset"], sizes) for b in case["buffers"]], storages


def _sizes(case: Mapping[str, Any], arrays: Sequence[Array]) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec, array in zip([spec for spec in case["inputs"] if spec["is_given"]], arrays, strict=True):
        found |= {
            name: size for name, size in zip(spec["shape"], array.shape, strict=True) if isinstance(name, str) and name.isidentifier()
        }
    return found


def check(folder: Path, deadline: float) -> list[dict[str, Any]]:
    """A line for each case: its name, and its largest error in slacks, infinite if it failed. Stops at the deadline."""
    listed = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    kernels, results = Kernels(folder), list[dict[str, Any]]()
    with np.load(HERE / json.loads((folder / "data.json").read_text(encoding="utf-8"))) as data:
        for index, case in enumerate(listed["cases"]):
            if time.monotonic() > deadline:
                results.append({"kernel": case["name"], "error": math.inf, "problem": "there was no time left"})
                continue
            line: dict[str, Any] = {"kernel": case["name"], "error": 0.0}
            results.append(line)
            try:
                for num_tokens in listed["num_tokens"]:
                    line["error"] = max(line["error"], _error(kernels, case, data, index, num_tokens))
            except (CupolaError, RuntimeError, ValueError) as error:
                line |= {"error": math.inf, "problem": str(error)}
            print(f"{'ok' if line['error'] <= 1 else 'WRONG':5} {line['error']:8.3f}  {case['name']} {line.get('problem', '')}", flush=True)
    return results


def _error(kernels: Kernels, case: dict[str, Any], data: Mapping[str, Array], index: int, num_tokens: int) -> float:
    prefix, arrays = f"{index}.{num_tokens}.", []
    while f"{prefix}{len(arrays)}" in data:
        arrays.append(data[f"{prefix}{len(arrays)}"])
    num_inputs = len(arrays)
    while f"{index}.weight.{len(arrays) - num_inputs}" in data:
        arrays.append(data[f"{index}.weight.{len(arrays) - num_inputs}"])
    first, second = (kernels.run(case, arrays) for _ in range(2))
    value, slack = data[f"{prefix}value"], data[f"{prefix}slack"]
    dtype = case["inputs"][case["result"]]["dtype"]
    if first.shape != value.shape:
        raise ValueError(f"gives {first.shape} where {value.shape} is expected")
    matters = np.isfinite(slack)
    if first[matters].tobytes() != second[matters].tobytes():
        raise ValueError("gives other bits the second time")
    distance = np.abs(as_float64(first, dtype) - value)
    return math.inf if np.isnan(distance).any() else float(np.max(distance / slack, initial=0.0))


def as_float64(array: Array, dtype: str) -> Array:
    """The numbers of an array of the device's; of bfloat16, numpy holds the bits."""
    assert array.dtype == numpy_dtype(dtype)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if dtype == "bfloat16" else array.astype(np.float64)


def main() -> int:
    """Checks, writes the results, and gives the number of kernels that are wrong, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "kernels.json", help="the results, as JSON")
    parser.add_argument("--seconds", type=float, default=500, help="after which no further kernel is begun")
    options = parser.parse_args()
    folder, start = choose_folder(), time.monotonic()
    results = check(folder / "kernels", start + options.seconds)
    wrong = [line["kernel"] for line in results if not line["error"] <= 1]
    report = {"gpu": gpu_name(), "architecture": folder.name, "seconds": time.monotonic() - start, "wrong": wrong, "kernels": results}
    options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{len(results) - len(wrong)} of {len(results)} kernels are right; {options.out}")
    return min(len(wrong), 100)


if __name__ == "__main__":
    sys.exit(main())
