"""GPUs by what their makers publish: bandwidth and dense peaks. And the cost of a launch."""

from __future__ import annotations

from dataclasses import dataclass

from cupola.runtime.errors import OptionError


@dataclass(frozen=True)
class Machine:
    """A GPU.

    Attributes:
        target: what is compiled for it, as `cupola targets` lists it, or will.
        bytes_per_second: of its memory.
        matrix: operations a second of its matrix units, on numbers of 16 bits with float32 sums, without sparsity. A multiply-add is two.
        vector: the same of float32 outside of them.
        launch_seconds: between the end of one kernel and the beginning of the next within a graph, where nothing is done.
    """

    name: str
    target: str
    bytes_per_second: float
    matrix: float
    vector: float
    launch_seconds: float

    def peak(self, arithmetic: str) -> float:
        """Operations a second of kernels that multiply in `arithmetic`, as `KernelCost` names it."""
        return self.vector if arithmetic == "float32" else self.matrix


# 1.3 µs: what Hazy Research measured on an H100 with CUDA graphs ("Look Ma, No Bubbles!", 2025). NVIDIA's other GPUs are taken to be so.
# AMD and Apple publish nothing, and no measurement was found: theirs are assumptions.
_CUDA, _HIP, _METAL = 1.3e-6, 2.5e-6, 2.5e-6


def _machine(name: str, target: str, gigabytes: float, matrix_tera: float, vector_tera: float, launch: float = _CUDA) -> Machine:
    return Machine(name, target, 1e9 * gigabytes, 1e12 * matrix_tera, 1e12 * vector_tera, launch)


MACHINES = {
    machine.name: machine
    for machine in (
        _machine("a100", "cuda:sm_80", 2039, 312, 19.5),  # NVIDIA A100 datasheet (2021), SXM, 80 GB
        _machine("h100", "cuda:sm_90a", 3350, 989.4, 66.9),  # NVIDIA H100 datasheet, and "H100 Tensor Core GPU Architecture" (2022), SXM
        _machine("h200", "cuda:sm_90a", 4800, 989.4, 66.9),  # NVIDIA H200 datasheet (2024), SXM
        _machine("b200", "cuda:sm_80", 8000, 2250, 75),  # NVIDIA DGX B200 datasheet (2024), an eighth of eight GPUs
        _machine("l4", "cuda:sm_89", 300, 121, 30.3),  # NVIDIA L4 datasheet (2023)
        _machine("l40s", "cuda:sm_89", 864, 362, 91.6),  # NVIDIA L40S datasheet (2023)
        _machine("rtx3090", "cuda:sm_86", 936, 71, 35.6),  # "NVIDIA Ampere GA102 GPU Architecture" (2021), appendix
        _machine("rtx4090", "cuda:sm_89", 1008, 165.2, 82.6),  # "NVIDIA Ada GPU Architecture" (2023), appendix
        _machine("rtx5090", "cuda:sm_89", 1792, 209.5, 104.8),  # "NVIDIA RTX Blackwell GPU Architecture" (2025), appendix
        _machine("mi300x", "rocm:gfx942", 5300, 1307.4, 163.4, _HIP),  # AMD Instinct MI300X data sheet (2023)
        _machine("rx7900xtx", "rocm:gfx1100", 960, 122.8, 61.4, _HIP),  # AMD Radeon RX 7900 XTX specifications (2022)
        # Apple, "M4 Pro and M4 Max" (2024): 40 cores and 546 GB/s. It publishes no peak: 128 lanes a core at 1.58 GHz, as reviewers found,
        # and the same for matrices, which its GPUs before the M5 multiply in those lanes.
        _machine("m4-max", "metal", 546, 16.2, 16.2, _METAL),
    )
}


def find_machine(name: str) -> Machine:
    """The machine called `name`. Raises OptionError."""
    if name not in MACHINES:
        raise OptionError(f"is {name!r:.60}", field="roofline", fix=f"take one of {', '.join(MACHINES)}")
    return MACHINES[name]
