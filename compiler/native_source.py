"""`forward` in C: one function that calls a plan's kernels one after the other, and what else a library exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy.typing as npt

from cupola.runtime.artifact.plan import ALIGNMENT, BUFFER, CONSTANT, INPUT, Place, Plan, PlanCall, PlanKernel

_TYPES = {"int32": "int32_t", "int64": "int64_t", "bool": "_Bool", "int8": "int8_t", "uint8": "uint8_t"}
_BYTES_A_LINE = 32

_HEAD = """\
/* `forward` as the plan beside this library says. */
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define ROUND(bytes) (((bytes) + {alignment} - 1) / {alignment} * {alignment})

int64_t cupola_clock(void);
void cupola_begin(void);
void cupola_end(void);

EXPORT const int32_t cupola_abi = {abi};
"""

# What the runtime of a device adds: a place in its memory for a constant, and steps that it may replay.
_DEVICE_HEAD = """\
void *cupola_hold(void **place, const void *constant, int64_t bytes);
int32_t cupola_step(int32_t (*step)(const int64_t *dims, void *const *inputs, char *workspace), const int64_t *dims, int64_t num_dims,
                    void *const *inputs, int64_t num_inputs, char *workspace);
"""

# Where the first and the last call, and that there is no clock, are constants, nothing is left of them: a step finds its code in no cache.
_RUN = """\
static __attribute__((noinline)) int32_t step(const int64_t *dims, void *const *inputs, char *workspace) {{
  return calls(0, {count}, dims, inputs, workspace, 0);
}}

static __attribute__((noinline)) int32_t timed_step(const int64_t *dims, void *const *inputs, char *workspace, int64_t *clock) {{
  return calls(0, {count}, dims, inputs, workspace, clock);
}}

EXPORT int32_t cupola_run(int64_t times, const int64_t *dims, void *const *inputs, void *workspace, int64_t *clock) {{
  int32_t code = 0;
  cupola_begin();
  for (int64_t i = 0; i < times && !code; ++i)
    code = clock ? timed_step(dims, inputs, workspace, clock) : {step};
  cupola_end();
  return code;
}}

EXPORT int32_t cupola_run_calls(int64_t first, int64_t last, const int64_t *dims, void *const *inputs, void *workspace) {{
  cupola_begin();
  int32_t code = calls(first, last, dims, inputs, workspace, 0);
  cupola_end();
  return code;
}}
"""


def forward_source(plan: Plan, constants: Sequence[npt.NDArray[Any]], symbol: str, *, on_host: bool = True) -> str:
    """The C source of a library with that plan; the symbols of kernels begin with `symbol`.

    Where not `on_host`, kernels take addresses of a device's memory, where constants must be brought first.
    """
    places = (place for call in plan.calls for place in call.pointers)
    num_inputs = 1 + max((place.index for place in places if place.kind == INPUT), default=-1)
    device_step = f"cupola_step(step, dims, {len(plan.dims)}, inputs, {num_inputs}, workspace)"
    parts = (
        _HEAD.format(alignment=ALIGNMENT, abi=plan.abi),
        *([] if on_host else [_DEVICE_HEAD, *(f"static void *held_{i};" for i in range(len(constants)))]),
        *_kernels(plan, symbol),
        *map(_constant, count(), constants),
        *_calls(plan, symbol, on_host),
    )
    step = "step(dims, inputs, workspace)" if on_host else device_step
    return "\n".join([*parts, _RUN.format(count=len(plan.calls), step=step)])


def _kernels(plan: Plan, symbol: str) -> Iterator[str]:
    """Each kernel's declaration, and the function by which others call it on its own."""
    for kernel in plan.kernels:
        types = _parameter_types(kernel)
        params = ", ".join(f"{type_} a{i}" for i, type_ in enumerate(types)) or "void"
        given = ", ".join(f"a{i}" for i in range(len(types)))
        yield f"int32_t {symbol}{kernel.name}({', '.join(types) or 'void'});"
        yield f"EXPORT int32_t cupola_kernel_{kernel.name}({params}) {{"
        yield f"  cupola_begin();\n  int32_t code = {symbol}{kernel.name}({given});\n  cupola_end();\n  return code;\n}}\n"


def _parameter_types(kernel: PlanKernel) -> list[str]:
    return [*("void *" for _ in kernel.pointers), *(_TYPES[dtype] for dtype in kernel.numbers), *("int64_t" for _ in kernel.sizes)]


def _constant(index: int, values: npt.NDArray[Any]) -> str:
    """An array's bytes. As strings, which compilers read far faster than lists of numbers."""
    data = values.tobytes()
    octal = [f"\\{byte:03o}" for byte in data]
    lines = ["".join(octal[at : at + _BYTES_A_LINE]) for at in range(0, len(octal), _BYTES_A_LINE)] or [""]
    text = "\n".join(f'  "{line}"' for line in lines)
    return f"static const _Alignas({ALIGNMENT}) char constant_{index}[{len(data) + 1}] =\n{text};\n"


def _calls(plan: Plan, symbol: str, on_host: bool) -> Iterator[str]:
    sizes = [f"  const int64_t size_{dim} = dims[{i}];\n  (void)size_{dim};" for i, dim in enumerate(plan.dims)]
    yield from ("EXPORT int64_t cupola_workspace_bytes(const int64_t *dims) {", *sizes)
    yield f"  return {' + '.join(f'ROUND({_c(size)})' for size in plan.storages) or '0'};\n}}\n"
    yield "static inline __attribute__((always_inline)) int32_t calls("
    yield "    int64_t first, int64_t last, const int64_t *dims, void *const *inputs, char *workspace, int64_t *clock) {"
    yield from sizes
    for i, size in enumerate(plan.storages):
        yield f"  char *const s{i} = workspace;\n  workspace += ROUND({_c(size)});\n  (void)s{i};"
    yield "  if (clock) clock[0] = cupola_clock();"
    for i, call in enumerate(plan.calls):
        yield f"  if (first <= {i} && {i} < last && {symbol}{call.kernel}({_arguments(plan, call, on_host)})) return {i + 1};"
        yield f"  if (clock) clock[{i + 1}] = cupola_clock();"
    yield "  return 0;\n}\n"


def _arguments(plan: Plan, call: PlanCall, on_host: bool) -> str:
    return ", ".join([*(_pointer(plan, place, on_host) for place in call.pointers), *map(_c, call.numbers), *map(_c, call.sizes)])


def _pointer(plan: Plan, place: Place, on_host: bool) -> str:
    if place.kind == CONSTANT:
        name = f"constant_{place.index}"
        return f"(void *){name}" if on_host else f"cupola_hold(&held_{place.index}, {name}, sizeof {name})"
    if place.kind != BUFFER:
        return f"inputs[{place.index}]"
    buffer = plan.buffers[place.index]
    return f"s{buffer.storage}" if buffer.offset == 0 else f"s{buffer.storage} + {_c(buffer.offset)}"


def _c(size: int | str) -> str:
    """A size in C. Sizes are not negative, so that // is its /."""
    return re.sub(r"[A-Za-z_]\w*", r"size_\g<0>", str(size)).replace("//", "/") if isinstance(size, str) else str(size)
