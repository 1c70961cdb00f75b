"""PTX of compute capability 9 against float64: barriers in shared memory, bulk copies, matrix products of warpgroups, and their faults."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.softgpu.kernel import Kernel

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

BARRIERS = """
__device__ __forceinline__ unsigned at(const void *p) { return __cvta_generic_to_shared(p); }
__device__ __forceinline__ void init(void *b, unsigned n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at(b)), "r"(n)); }
__device__ __forceinline__ void arrive(void *b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(at(b)) : "memory"); }
__device__ __forceinline__ void expect(void *b, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(void *b, unsigned parity) {
  asm volatile("{\\n .reg .pred P;\\n LAB_WAIT:\\n mbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1;\\n"
               " @P bra DONE;\\n bra LAB_WAIT;\\n DONE:\\n}" :: "r"(at(b)), "r"(parity) : "memory");
}
__device__ __forceinline__ void bulk(void *to, const void *from, unsigned bytes, void *b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(at(to)), "l"(from), "r"(bytes), "r"(at(b)) : "memory");
}
__device__ __forceinline__ void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
"""
PIPELINE = """
  alignas(16) __shared__ float held[2][64];
  alignas(8) __shared__ unsigned long long full[2], empty[2];
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (threadIdx.x == 0) for (int s = 0; s < 2; ++s) init(full + s, 1), init(empty + s, 64);
  fence_proxy();
  __syncthreads();
  float sum = 0;
  if (threadIdx.x >= 64) {  // the producer
    if (threadIdx.x == 64)
      for (int i = 0; i < 5; ++i) {
        EMPTY wait(empty + i % 2, i / 2 % 2 ^ 1);
        expect(full + i % 2, 256 + MORE);
        bulk(held[i % 2], x + 64 * i, 128, full + i % 2);
        bulk(held[i % 2] + 32, x + 64 * i + 32, 128, full + i % 2);
      }
  } else {
    for (int i = 0; i < 5; ++i) {
      FULL wait(full + i % 2, i / 2 % 2);
      sum = 10 * sum + held[i % 2][63 - threadIdx.x];
      arrive(empty + i % 2);
    }
    out[threadIdx.x] = sum;
  }"""


def pipeline(folder: Path, *, full: bool = True, empty: bool = True, more: int = 0) -> tuple[str, npt.NDArray[np.float32], bool]:
    """The error, the result, and whether it is right, of one warp that copies and two that add."""
    body = PIPELINE.replace("FULL", "" if full else "if (0)").replace("EMPTY", "" if empty else "if (0)").replace("MORE", str(more))
    x, out = np.random.default_rng(0).integers(0, 9, (5, 64)).astype(np.float32), np.zeros(64, np.float32)
    error = Kernel(body, folder, "float *x, float *out", BARRIERS)(x, out, threads=96)
    return error, out, np.array_equal(out, (10.0 ** np.arange(5)[::-1] @ x.astype(np.float64))[::-1])


@pytest.mark.parametrize("seed", ["0", "1", "7"])
def test_a_warp_copies_for_others(seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_SEED", seed)
    error, _, right = pipeline(tmp_path)
    assert not error and right


def test_a_missing_wait_for_bytes_shows(tmp_path: Path) -> None:
    assert np.isnan(pipeline(tmp_path, full=False)[1]).any()


def test_a_buffer_that_is_filled_before_it_is_free_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_SEED", "1")
    error, out, right = pipeline(tmp_path, empty=False)
    assert not right and (np.isnan(out).any() or "arrivals at an mbarrier" in error)


def test_bytes_that_never_come_are_told(tmp_path: Path) -> None:
    assert "wait for an mbarrier for ever: its phase lacks 0 arrivals and 16 bytes" in pipeline(tmp_path, more=16)[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("arrive(b);", "not initialised"),
        ("init(b, 2); init(b, 2);", "initialised already"),
        ("init(b, 1); asm(\"mbarrier.inval.shared.b64 [%0];\" :: \"r\"(at(b))); wait(b, 0);", "not initialised"),
        ("init(b, 0);", "a count outside"),
        ("init(b, 2); arrive(b); wait(b, 0);", "lacks 1 arrivals and 0 bytes"),
        ("init(b, 1); expect(b, 1 << 20);", "more than 1,048,575 bytes"),
        ("init(held + 1, 1);", "misaligned"),
        ("init(b, 1); expect(b, 16); bulk(held, x + 1, 16, b);", "not a multiple of 16 bytes"),
        ("init(b, 1); expect(b, 16); bulk(held, x, 16, b);", "ends while its bulk copies are under way"),
        ("init(b, 1); bulk(held, x, 32, b); wait(b, 0);", "lacks 1 arrivals and -32 bytes"),
    ],
)  # fmt: skip
def test_a_wrong_barrier_is_told(body: str, message: str, tmp_path: Path) -> None:
    body = f"alignas(16) __shared__ float held[32]; alignas(8) __shared__ unsigned long long b[1]; held[0] = 1; {body}"
    assert message in Kernel(body, tmp_path, before=BARRIERS)(np.zeros(64, np.float32), threads=1)


FORMATS = {"f16": (np.float16, 16), "bf16": (ml_dtypes.bfloat16, 16), "e4m3": (ml_dtypes.float8_e4m3fn, 32)}


def wgmma_source(n: int, kind: str, *, registers: bool = False, transposed: bool = False) -> str:
    """`product(d, a, b, keep)`, whose A are registers or a descriptor, and whose B may lie with k in rows."""
    size, k = n // 2, FORMATS[kind][1]
    d, a = ", ".join(f"%{i}" for i in range(size)), 4 if registers else 1
    sources = "{" + ", ".join(f"%{size + i}" for i in range(4)) + "}" if registers else f"%{size}"
    swaps = "" if kind == "e4m3" else f", {transposed:d}" if registers else f", 0, {transposed:d}"
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(size))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4)) if registers else '"l"(a)'
    return f"""{BARRIERS}
__device__ __forceinline__ void product(float *d, {"const unsigned *a" if registers else "uint64_t a"}, uint64_t b, int keep) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{size + a + 1}, 0;\\n"
    "wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} {{{d}}}, {sources}, %{size + a}, p, 1, 1{swaps};\\n}}"
    : {outputs} : {inputs}, "l"(b), "r"(keep));
}}
__device__ __forceinline__ uint64_t descriptor(const void *p, int lead, int stride, int mode) {{
  return (at(p) & 0x3ffff) >> 4 | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | (uint64_t)mode << 62;
}}
__device__ __forceinline__ void fence() {{ asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }}
__device__ __forceinline__ void commit() {{ asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }}
template <int Left> __device__ __forceinline__ void wait_products() {{
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(Left) : "memory");
}}
"""


# Rows of 128 bytes, four products along them; in each, 8 rows are a swizzle atom of 1024 bytes.
SWIZZLED = """
  alignas(1024) __shared__ char left[64 * 128], right[N * 128];
  const int t = threadIdx.x;
  for (int i = t; i < 64 * 128; i += 128) left[i ^ (i >> 7 & 7) << 4] = a[i];
  for (int i = t; i < N * 128; i += 128) right[i ^ (i >> 7 & 7) << 4] = b[i];
  fence_proxy();
  __syncthreads();
  float d[N / 2];
  for (int i = 0; i < N / 2; ++i) d[i] = 1;
  FENCE;
  for (int k = 0; k < 4; ++k) product(d, descriptor(left + 32 * k, 16, 1024, 1), descriptor(right + 32 * k, 16, 1024, 1), KEEP || k);
  COMMIT;
  WAIT;
  for (int i = 0; i < N / 2; ++i) c[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];"""


def swizzled(folder: Path, n: int, kind: str, **changes: str) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The error, the result and what is expected of a product of 64 rows with n of 128 bytes."""
    body = SWIZZLED
    for name, code in {"FENCE": "fence()", "COMMIT": "commit()", "WAIT": "wait_products<0>()", "KEEP": "1", **changes}.items():
        body = body.replace(name, code)
    random, number = np.random.default_rng(0), FORMATS[kind][0]
    k = 128 // np.dtype(number).itemsize
    a, b = (random.standard_normal((rows, k)).astype(number) for rows in (64, n))
    c = np.zeros((64, n), np.float32)
    error = Kernel(body.replace("N", str(n)), folder, "char *a, char *b, float *c", wgmma_source(n, kind))(a, b, c, threads=128)
    return error, c, (changes.get("KEEP") != "0") + a.astype(np.float64) @ b.astype(np.float64).T


@pytest.mark.parametrize(("n", "kind"), [(8, "f16"), (16, "bf16"), (64, "f16"), (128, "bf16"), (256, "f16"), (32, "e4m3"), (256, "e4m3")])
def test_swizzled_matrices_multiply(n: int, kind: str, tmp_path: Path) -> None:
    error, c, expected = swizzled(tmp_path, n, kind, KEEP=str(n % 64))
    assert not error
    np.testing.assert_allclose(c, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"WAIT": ""}, {"COMMIT": ""}, {"WAIT": "wait_products<1>()"}], ids=["none", "nothing committed", "too few"]
)
def test_a_missing_wait_for_products_shows(changes: dict[str, str], tmp_path: Path) -> None:
    error, c, _ = swizzled(tmp_path, 8, "f16", **changes)
    assert not error and np.isnan(c).all()


def test_a_missing_fence_is_told(tmp_path: Path) -> None:
    assert "without a wgmma.fence after its registers were written" in swizzled(tmp_path, 8, "f16", FENCE="")[0]
    (folder := tmp_path / "again").mkdir()
    again = "wait_products<0>(); d[3] *= 2; product(d, descriptor(left, 16, 1024, 1), descriptor(right, 16, 1024, 1), 1)"
    assert "without a wgmma.fence after its registers were written" in swizzled(folder, 8, "f16", WAIT=again)[0]


def test_a_buffer_that_is_written_while_products_read_it_shows(tmp_path: Path) -> None:
    error, c, expected = swizzled(tmp_path, 8, "f16", COMMIT="commit(); __syncthreads(); left[t] = 0")
    assert not error and not np.allclose(c[0], expected[0], atol=1e-2)


def test_half_a_warpgroup_is_told(tmp_path: Path) -> None:
    body = "float d[4] = {}; fence(); product(d, 0, 0, 1); *x = d[0];"
    found = Kernel(body, tmp_path, before=wgmma_source(8, "f16"))(np.zeros(4, np.float32), threads=96)
    assert "the four warps of a warpgroup" in found


@pytest.mark.parametrize("kind", ["f16", "e4m3"])
def test_a_of_registers_and_b_without_swizzle(kind: str, tmp_path: Path) -> None:
    """B as blocks of 8 rows by 16 bytes: two along k, 128 bytes apart, and n / 8 of these pairs, 256 bytes apart."""
    number, k = FORMATS[kind]
    body = """
  alignas(16) __shared__ char right[N * 32];
  const int t = threadIdx.x;
  for (int i = t; i < N * 32; i += 128) right[i / 256 * 256 + i % 32 / 16 * 128 + i / 32 % 8 * 16 + i % 16] = b[i];
  __syncthreads();
  float d[N / 2], e[N / 2];
  unsigned rows[4];
  for (int r = 0; r < 4; ++r) rows[r] = ((unsigned *)a)[(t / 32 * 16 + t % 32 / 4 + r % 2 * 8) * 8 + t % 4 + r / 2 * 4];
  for (int i = 0; i < N / 2; ++i) d[i] = e[i] = 0;
  fence();
  product(d, rows, descriptor(right, 128, 256, 0), 1), commit();
  product(e, rows, descriptor(right, 128, 256, 0), 1);
  product(e, rows, descriptor(right, 128, 256, 0), 1), commit();
  wait_products<1>();
  for (int i = 0; i < N / 2; ++i) c[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
  if (t == 0) c[64 * N] = e[0];
  wait_products<0>();
  if (t == 0) c[64 * N + 1] = d[0], c[64 * N + 2] = e[0];"""
    random, n = np.random.default_rng(0), 24
    a, b = (random.standard_normal((rows, k)).astype(number) for rows in (64, n))
    c = np.zeros(64 * n + 3, np.float32)
    source = wgmma_source(n, kind, registers=True)
    assert Kernel(body.replace("N", str(n)), tmp_path, "char *a, char *b, float *c", source)(a, b, c, threads=128) == ""
    np.testing.assert_allclose(c[: 64 * n].reshape(64, n), a.astype(np.float64) @ b.astype(np.float64).T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(c[-3:], [np.nan, c[0], 2 * c[0]], rtol=1e-5)  # the later group was under way


@pytest.mark.parametrize("mode", [0, 1], ids=["no swizzle", "swizzled"])
def test_b_with_k_in_rows(mode: int, tmp_path: Path) -> None:
    """B [k, n] as rows of 64 columns, 8 of them an atom: columns go on 2048 bytes later, k 1024. Or as blocks of 8 by 16 bytes."""
    body = """
  alignas(1024) __shared__ char right[16 * N * 2];
  const int t = threadIdx.x;
  for (int i = t; i < 16 * N * 2; i += 128) {
    const int k = i / (2 * N), byte = i % (2 * N);
    const int at = MODE ? byte / 128 * 2048 + k * 128 + byte % 128 : byte / 16 * 256 + k * 16 + byte % 16;
    right[MODE ? at ^ (at >> 7 & 7) << 4 : at] = b[i];
  }
  __syncthreads();
  float d[N / 2];
  unsigned rows[4];
  for (int r = 0; r < 4; ++r) rows[r] = ((unsigned *)a)[(t / 32 * 16 + t % 32 / 4 + r % 2 * 8) * 8 + t % 4 + r / 2 * 4];
  fence();
  product(d, rows, MODE ? descriptor(right, 2048, 1024, 1) : descriptor(right, 128, 256, 0), 0), commit();
  wait_products<0>();
  for (int i = 0; i < N / 2; ++i) c[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];"""
    random, n = np.random.default_rng(0), 128
    a, b = random.standard_normal((64, 16)).astype(np.float16), random.standard_normal((16, n)).astype(np.float16)
    c = np.zeros((64, n), np.float32)
    source = wgmma_source(n, "f16", registers=True, transposed=True)
    body = body.replace("N", str(n)).replace("MODE", str(mode))
    assert Kernel(body, tmp_path, "char *a, char *b, float *c", source)(a, b, c, threads=128) == ""
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), rtol=0, atol=1e-4)


TILES = """
  alignas(1024) __shared__ char left[2][64 * 128], right[2][N * 128];
  alignas(8) __shared__ unsigned long long full[2];
  const int t = threadIdx.x;
  if (t == 0) {
    for (int k = 0; k < 2; ++k) {
      init(full + k, 1);
      expect(full + k, (64 + N) * 128);
      tile(left[k], &a, 64 * k, -2, full + k);  // two rows before the first
      tile(right[k], &b, 64 * k, 8, full + k);
    }
  }
  __syncthreads();
  float d[N / 2];
  for (int k = 0; k < 2; ++k) {
    WAIT(full + k, 0);
    fence();
    for (int i = 0; i < 4; ++i)
      product(d, descriptor(left[k] + 32 * i, 16, 1024, 1), descriptor(right[k] + 32 * i, 16, 1024, 1), k || i);
    commit();
    wait_products<0>();
  }
  for (int i = 0; i < N / 2; ++i) c[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];"""
TILE = """
__device__ __forceinline__ void tile(void *to, const CUtensorMap *map, int column, int row, void *b) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               :: "r"(at(to)), "l"(map), "r"(column), "r"(row), "r"(at(b)) : "memory");
}
"""


@pytest.mark.parametrize("wait", ["wait", "(void)"])
def test_tiles_by_tensor_maps(wait: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 columns whose rows go beyond the matrix on either side, where there are zeros."""
    random, n = np.random.default_rng(0), 16
    a, b = random.standard_normal((50, 128)).astype(np.float16), random.standard_normal((20, 128)).astype(np.float16)
    arguments = "const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float *c"
    body = TILES.replace("WAIT", wait).replace("N", str(n)).replace("(void)(full + k, 0)", "(void)(full + k)")
    kernel = Kernel(body, tmp_path, arguments, wgmma_source(n, "f16") + TILE)
    maps = [kernel.tensor_map(array, (rows, 64), 3, 6) for array, rows in ((a, 64), (b, n))]
    rows_a, rows_b = np.zeros((64, 128)), np.zeros((n, 128))
    rows_a[2:52], rows_b[:12] = a, b[8:]
    for seed in "017":
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        c = np.ones((64, n), np.float32)
        error = kernel(*maps, c, threads=128)
        if wait == "wait":
            assert not error
            np.testing.assert_allclose(c, rows_a @ rows_b.T, rtol=0, atol=1e-4)
        else:
            assert "ends while its bulk copies are under way" in error and np.isnan(c).all()


def test_a_wrong_tensor_map_is_told(tmp_path: Path) -> None:
    arguments = "const __grid_constant__ CUtensorMap a, float *x"
    body = "alignas(1024) __shared__ char to[4096]; alignas(8) __shared__ unsigned long long b[1]; init(b, 1); tile(to + 16, &a, 0, 0, b);"
    kernel, x = Kernel(body, tmp_path, arguments, BARRIERS + TILE), np.zeros((64, 64), np.float16)
    assert "longer than its swizzle" in kernel.tensor_map(np.zeros((64, 128), np.float16), (8, 128), 3, 6)
    assert "more than 256" in kernel.tensor_map(x, (300, 64), 3, 6)
    assert "not a multiple of 16 bytes" in kernel.tensor_map(x, (8, 12), 0, 6)
    assert "a stride" in kernel.tensor_map(np.zeros((64, 12), np.float16), (8, 8), 0, 6)
    assert "misaligned" in kernel(kernel.tensor_map(x, (8, 64), 3, 6), x, threads=1)
    assert "another rank" in kernel(kernel.tensor_map(x[None], (1, 8, 64), 3, 6), x, threads=1)
