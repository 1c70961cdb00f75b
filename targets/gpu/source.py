"""The host's side of device kernels in C: for each of cupola's kernels a function that launches them.

The runtime that is linked beside it (`targets/gpu/drivers/runtime.h`) has

    int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes)

for the kernel that `cupola_symbols[index]` names in `cupola_image`: blocks along x, y and z, then threads. It gives 0
or an error's number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count

from cupola.runtime.artifact.plan import PlanKernel
from cupola.targets.gpu.lowering import Launch
from cupola.targets.native.interface import SYMBOL

_TYPES = {"int32": "int32_t", "int64": "int64_t", "bool": "_Bool", "uint32": "uint32_t", "int8": "int8_t", "uint8": "uint8_t"}
_HEAD = """\
/* How the kernels beside this file are launched. */
#include <stdint.h>

int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes);

"""


def launch_source(kernels: Sequence[PlanKernel], launches: Mapping[str, Sequence[Launch]]) -> str:
    """The C source; `launches` are those of each kernel by name."""
    symbols, functions, numbers = [], [], count()
    for kernel in kernels:
        types = ["void *"] * len(kernel.pointers) + [_TYPES[dtype] for dtype in kernel.numbers] + ["int64_t"] * len(kernel.sizes)
        params = ", ".join(f"{type_} a{i}" for i, type_ in enumerate(types)) or "void"
        lines = [f"int32_t {SYMBOL}{kernel.name}({params}) {{", "  int32_t code = 0;"]
        for launch in launches[kernel.name]:
            symbols.append(launch.symbol)
            lines += _launch(launch, next(numbers))
        functions += [*lines, "  return code;", "}", ""]
    names = ", ".join(f'"{symbol}"' for symbol in symbols)
    table = [f"const int32_t cupola_num_symbols = {len(symbols)};", f"const char *const cupola_symbols[] = {{{names}}};", ""]
    return _HEAD + "\n".join([*functions, *table])


def _launch(launch: Launch, index: int) -> list[str]:
    values = [f"    {_TYPES.get(type_, 'void *')} v{i} = {_c(value)};" for i, (type_, value) in enumerate(launch.arguments)]
    addresses = ", ".join(f"&v{i}" for i in range(len(values)))
    extents = ", ".join(_c(extent) for extent in launch.extents)
    return [
        "  if (!code) {",
        *values,
        f"    void *arguments[] = {{{addresses}}};",
        f"    const int64_t extents[] = {{{extents}}};",
        "    if (extents[0] && extents[1] && extents[2])",
        f"      code = cupola_launch({index}, arguments, extents, {_c(launch.shared)});",
        "  }",
    ]


def _c(size: int | str) -> str:
    return re.sub("//", "/", str(size))
