"""The runtime and the limits of targets for CUDA, whoever compiles their kernels."""

from __future__ import annotations

from pathlib import Path

from cupola.targets.base import Abilities

RUNTIME = Path(__file__).with_name("cuda.c")  # which every library holds
LIMITS = {"max_threads_per_block": 1024, "max_num_threads": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
ABILITIES = Abilities(activation_bits=(16,))
