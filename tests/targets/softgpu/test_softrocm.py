"""AMD's instructions on a CPU: matrix units as the manuals of the instruction sets have them, and what lanes of a wavefront exchange."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.softgpu.kernel import Kernel

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

LANES = {"gfx942": 64, "gfx1100": 32}
NUMBERS = {"half": np.dtype("float16"), "nv_bfloat16": np.dtype(ml_dtypes.bfloat16)}

# Where A, B and D [16, 16] lie, as AMD's matrix instruction calculator prints it: of element [row, column] the index among numbers of a
# lane, and the lane.
PLACES = {
    "gfx942": [  # v_mfma_f32_16x16x16_f16
        ("A", (0, 0), 0, 0), ("A", (15, 2), 2, 15), ("A", (15, 3), 3, 15), ("A", (15, 4), 0, 31), ("A", (15, 15), 3, 63),
        ("B", (15, 0), 3, 48), ("B", (15, 15), 3, 63), ("D", (15, 0), 3, 48), ("D", (15, 15), 3, 63),
    ],
    "gfx1100": [  # v_wmma_f32_16x16x16_f16
        ("A", (0, 0), 0, 0), ("A", (0, 15), 15, 16), ("A", (1, 2), 2, 1), ("A", (1, 2), 2, 17), ("B", (0, 15), 0, 31), ("B", (1, 3), 1, 3),
        ("B", (1, 2), 1, 18), ("D", (0, 15), 0, 15), ("D", (1, 0), 0, 16),
    ],
}  # fmt: skip


def places(architecture: str, matrix: str) -> npt.NDArray[np.int64]:
    """Of each lane and number the row and the column (ISA of CDNA 3, 7.1.4; of RDNA 3, 7.9)."""
    lane, number = np.meshgrid(np.arange(LANES[architecture]), np.arange({"D": 8}.get(matrix, 16)), indexing="ij")
    if architecture == "gfx942":
        lane, number = lane[:, :4], number[:, :4]
        along, across = lane // 16 * 4 + number, lane % 16
    else:
        along, across = (2 * number + lane // 16 if matrix == "D" else number), lane % 16
    return np.stack((across, along) if matrix == "A" else (along, across), axis=-1)


@pytest.mark.parametrize("architecture", LANES)
def test_places_are_those_that_amds_calculator_prints(architecture: str) -> None:
    for matrix, (row, column), number, lane in PLACES[architecture]:
        assert tuple(places(architecture, matrix)[lane, number]) == (row, column)


def product(architecture: str, number: str, folder: Path) -> Kernel:
    """A wavefront multiplies what each lane is given."""
    numbers, sums = (4, 4) if architecture == "gfx942" else (16, 8)
    body = f"""
  rocm::vector<{number}, {numbers}> a, b;
  rocm::vector<float, {sums}> c;
  for (int i = 0; i < {numbers}; ++i) a[i] = as[threadIdx.x * {numbers} + i], b[i] = bs[threadIdx.x * {numbers} + i];
  for (int i = 0; i < {sums}; ++i) c[i] = x[threadIdx.x * {sums} + i];
  c = rocm::multiply(a, b, c);
  for (int i = 0; i < {sums}; ++i) x[threadIdx.x * {sums} + i] = c[i];"""
    return Kernel(body, folder, f"float *x, const {number} *as, const {number} *bs", rocm=architecture)


@pytest.mark.parametrize("architecture", LANES)
@pytest.mark.parametrize("number", NUMBERS)
def test_matrix_units_multiply(architecture: str, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the rows of D a register further on, or columns of B in another lane, the product is another one."""
    kernel, random = product(architecture, number, tmp_path), np.random.default_rng(0)
    a, b = (random.standard_normal((16, 16)).astype(NUMBERS[number]) for _ in range(2))
    c = random.standard_normal((16, 16)).astype("float32")
    of = {name: tuple(np.moveaxis(places(architecture, name), -1, 0)) for name in "ABD"}
    expected = a.astype("float64") @ b.astype("float64") + c

    def run(b_shift: int = 0, d_shift: int = 0) -> npt.NDArray[np.float32]:
        x, result = np.ascontiguousarray(c[of["D"]]), np.zeros((16, 16), np.float32)
        given_b = np.ascontiguousarray(np.roll(b[of["B"]], b_shift, axis=0))
        assert kernel(x, np.ascontiguousarray(a[of["A"]]), given_b, threads=LANES[architecture]) == ""
        result[of["D"]] = np.roll(x, d_shift, axis=1)
        return result

    for seed in ("0", "1", "7"):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        np.testing.assert_allclose(run(), expected, rtol=0, atol=1e-5)
    for wrong in (run(b_shift=16 if architecture == "gfx942" else 1), run(d_shift=1)):
        assert np.abs(wrong - expected).max() > 0.1


def test_lanes_of_whole_rows_must_agree(tmp_path: Path) -> None:
    kernel = product("gfx1100", "half", tmp_path)
    a, b = np.ones((32, 16), np.float16), np.ones((32, 16), np.float16)
    a[20, 3] = 2
    assert "v_wmma wants in lanes 16 to 31 the operands of lanes 0 to 15" in kernel(np.zeros((32, 8), np.float32), a, b, threads=32)


@pytest.mark.parametrize("architecture", LANES)
def test_a_whole_wavefront_multiplies(architecture: str, tmp_path: Path) -> None:
    numbers, sums = (4, 4) if architecture == "gfx942" else (16, 8)
    body = f"""
  rocm::vector<half, {numbers}> a = 0;
  rocm::vector<float, {sums}> c = 0;
  if (threadIdx.x != 5) c = rocm::multiply(a, a, c);
  x[threadIdx.x] = c[0];"""
    error = Kernel(body, tmp_path, rocm=architecture)(np.zeros(64, np.float32), threads=LANES[architecture])
    assert "an instruction of a whole warp" in error


@pytest.mark.parametrize("architecture", LANES)
def test_lanes_exchange_values_within_32(architecture: str, tmp_path: Path) -> None:
    """By the three functions of the header."""
    body = """
  const int value = (int)x[threadIdx.x], by = *given;
  const int from = __shfl_sync(~0u, value, by, 32), down = __shfl_down_sync(~0u, value, by, 32);
  x[threadIdx.x] = from + 100 * down + 10000 * __shfl_xor_sync(~0u, value, by, 32);"""
    kernel, lanes = Kernel(body, tmp_path, "float *x, const int *given", rocm=architecture), np.arange(LANES[architecture])
    half, lane = lanes // 32 * 32, lanes % 32
    for by in (0, 1, 5, 16, 31):
        x = lanes.astype(np.float32)
        assert kernel(x, np.array([by], np.int32), threads=len(lanes)) == ""
        expected = half + by + 100 * (lanes + np.where(lane + by < 32, by, 0)) + 10000 * (half + (lane ^ by))
        np.testing.assert_array_equal(x, expected)


def test_halves_of_a_wavefront_go_different_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upper half exchanges values while the lower one waits at a barrier; who reads from a lane that went another way gets 0."""
    body = """
  float value = x[threadIdx.x], other = -1;
  const int turns = threadIdx.x < 32 ? 1 : 3;
  for (int i = 0; i < turns; ++i) value += __shfl_xor_sync(~0u, value, 1, 32);
  __syncthreads();
  if (threadIdx.x >= 32) other = rocm::from_lane(value, threadIdx.x - 32);
  x[threadIdx.x] = value, x[64 + threadIdx.x] = other;"""
    kernel = Kernel(body, tmp_path, rocm="gfx942")
    for seed in ("0", "1", "7"):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        x = np.concatenate([np.arange(64), np.zeros(64)]).astype(np.float32)
        assert kernel(x, threads=64) == ""
        pairs = (np.arange(64) // 2 * 4 + 1).astype(np.float32)
        np.testing.assert_array_equal(x[:64], np.where(np.arange(64) < 32, pairs, 4 * pairs))
        np.testing.assert_array_equal(x[64:], np.where(np.arange(64) < 32, -1, 0))
