"""Matrices of SIMD groups on the fibers: their products, and the faults that are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.errors import UnsupportedError
from tests.targets.softgpu.test_softmetal import Kernel

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

PRODUCT = """
  threadgroup T held[2 * 160];
  threadgroup T *const own = held + t / 32 * 160;
  for (uint i = t % 32; i < 64; i += 32) own[i / 8 * 20 + i % 8] = (T)x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<T, 8, 8> a, b, c = make_filled_simdgroup_matrix<T, 8, 8>(0.5f), all[2];
  simdgroup_load(a, own, 20);
  simdgroup_load(b, own, 20, 0, t >= 32);
  simdgroup_multiply_accumulate(c, a, b, c);
  simdgroup_multiply(all[1], c, a);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_store(all[1], own, 8, ulong2(0, 1), t >= 32);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup_barrier(mem_flags::mem_device);  // of x
  x[t] = own[8 + t];
"""
# What MLX and others take for granted: lanes have two neighbours of a row each.
APPLES_LAYOUT = """
  simdgroup_float8x8 a;
  simdgroup_load(a, x, 8);
  thread float2& mine = reinterpret_cast<thread float2&>(a);
  threadgroup_barrier(mem_flags::mem_device);
  x[t] = mine.x;
"""
WRITTEN_BY_ALL = """
  threadgroup float held[64];
  if (t >= 32) return;
  held[t] = x[t], held[t + 32] = x[t + 32];
  %s
  simdgroup_float8x8 a;
  simdgroup_load(a, held);
  simdgroup_store(a, x, 8, 0, true);
"""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float", 1e-6), ("half", 2e-3)])
def test_products(dtype: str, tolerance: float, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, 8), "float32").astype("float16").astype("float32")
    found = Kernel(PRODUCT.replace("T", dtype), tmp_path)(x.ravel())
    exact = x.astype("float64")
    expected = [(exact @ exact + 0.5) @ exact, ((exact @ exact.T + 0.5) @ exact).T]
    np.testing.assert_allclose(found, np.concatenate([expected[0].ravel()[:32], expected[1].ravel()[32:]]), atol=tolerance * 20)


def test_nobody_knows_which_lane_has_what(tmp_path: Path) -> None:
    """Not the order that Apple's GPUs have, and none that a kernel could have by chance."""
    x = np.arange(64, dtype=np.float32)
    found = Kernel(APPLES_LAYOUT, tmp_path)(x)
    lanes = np.arange(32)
    quads = lanes // 4
    rows, columns = (quads & 4) + lanes // 2 % 4, (quads & 2) * 2 + lanes % 2 * 2
    orders = [rows * 8 + columns, lanes * 2, lanes // 4 * 8 + lanes % 4 * 2]
    assert all((found[:32] != order).sum() > 24 for order in orders)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("simdgroup_float8x8 a; x[t] = a.thread_elements()[0];", "no member named 'thread_elements'"),
        ("simdgroup_bfloat8x8 a;", "simdgroup_bfloat8x8"),
        ("simdgroup_float8x8 a; simdgroup_half8x8 b; simdgroup_multiply(a, b, a);", "no matching function"),
        ("simdgroup_matrix<float, 4, 8> a;", "static assertion failed"),
        ("simdgroup_float8x8 a; float held[64]; simdgroup_load(a, held);", "no matching function"),
    ],
    ids=["its elements", "MSL 3.1's", "two types", "another size", "a thread's memory"],
)
def test_what_is_not_promised_does_not_compile(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Kernel(body, tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("simdgroup_float8x8 a; if (t % 2) simdgroup_load(a, x); threadgroup_barrier(mem_flags::mem_none);", "not all of its lanes reach"),
        ("simdgroup_float8x8 a; simdgroup_load(a, x + t % 32 / 31 * 8);", "do not agree where a matrix lies"),
        ("simdgroup_float8x8 a; simdgroup_store(a, x, 8 + t % 2);", "do not agree where a matrix lies"),
        (
            "simdgroup_half8x8 a; simdgroup_load(a, (device half*)((device char*)x + 1)); simdgroup_store(a, (device half*)x);",
            "a misaligned address",
        ),
    ],
    ids=["divergent", "another place", "another stride", "misaligned"],
)
def test_faults_are_found(body: str, message: str, tmp_path: Path) -> None:
    kernel = Kernel(body, tmp_path)
    x = kernel.tensor(np.zeros(128, np.float32))
    assert kernel.launch(x, x) == 0
    assert kernel.library.cupola_synchronize() != 0
    assert message in kernel.error()


@pytest.mark.parametrize("seed", ["0", "1", "7"])
def test_lanes_wait_before_a_matrix_is_read_and_show_when_they_do_not(seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_SEED", seed)
    folders = [tmp_path / name for name in ("right", "wrong")]
    for folder in folders:
        folder.mkdir()
    x = np.arange(64, dtype=np.float32)
    right = Kernel(WRITTEN_BY_ALL % "simdgroup_barrier(mem_flags::mem_threadgroup);", folders[0])
    np.testing.assert_array_equal(right(x), x.reshape(8, 8).T.ravel())
    assert np.isnan(Kernel(WRITTEN_BY_ALL % "", folders[1])(x)).any()
