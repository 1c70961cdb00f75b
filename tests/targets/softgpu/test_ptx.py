"""PTX of asynchronous copies and of tensor cores against float64, and the faults in its use that are found."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from cupola.runtime.errors import UnsupportedError
from cupola.targets.softgpu.translate import translate
from tests.targets.softgpu.kernel import Kernel

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

COPY = """
__device__ __forceinline__ unsigned at(const void *p) { return __cvta_generic_to_shared(p); }
template <int Left> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;\\n" ::"n"(Left) : "memory"); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;\\n" ::: "memory"); }
__device__ __forceinline__ void copy16(void *to, const void *from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\\n" ::"r"(at(to)), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copy8(void *to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1+8], %2;" :: "r"(at(to)), "l"(from), "n"(8));
}
__device__ __forceinline__ void copy4(void *to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(at(to)), "l"(from));
}
"""


def run(body: str, folder: Path, *, threads: int = 32) -> npt.NDArray[np.float32]:
    """The 64 floats that a kernel leaves of 0, 1, …"""
    x = np.arange(64, dtype=np.float32)
    assert Kernel(body, folder, before=COPY)(x, threads=threads) == ""
    return x


def test_copies_of_every_size(tmp_path: Path) -> None:
    body = """
  alignas(16) __shared__ float held[12];
  copy16(held, x + 4, 12);  // and 4 bytes of zeros
  copy8(held + 4, x + 8);
  copy4(held + 6, x + 1);
  copy16(held + 8, (void *)64, 0);  // nothing is read
  asm volatile("cp.async.wait_all;");
  for (int i = 0; i < 12; ++i) x[i] = held[i];"""
    np.testing.assert_array_equal(run(body, tmp_path, threads=1)[:12], [4, 5, 6, 0, 10, 11, 1, np.nan, 0, 0, 0, 0])


def test_a_wait_waits_for_its_groups_only(tmp_path: Path) -> None:
    body = """
  alignas(16) __shared__ float held[16];
  for (int i = 0; i < 16; ++i) held[i] = 9;
  copy16(held, x); commit();
  copy16(held + 4, x + 4); commit();
  commit();  // a group of nothing
  copy16(held + 8, x + 8);
  float seen[4];
  seen[0] = held[0];
  wait<2>(); seen[1] = held[1], seen[2] = held[5];
  wait<0>(); seen[3] = held[5];
  for (int i = 0; i < 4; ++i) x[i] = seen[i];
  x[4] = held[8], x[5] = held[12];"""
    np.testing.assert_array_equal(run(body, tmp_path, threads=1)[:6], [np.nan, 1, np.nan, 5, np.nan, 9])


@pytest.mark.parametrize(("wait", "barrier"), [("wait<0>();", "__syncthreads();"), ("", "__syncthreads();"), ("wait<0>();", "")])
def test_what_others_copied_wants_a_wait_and_a_barrier(wait: str, barrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"""
  alignas(16) __shared__ float held[64];
  copy4(held + threadIdx.x, x + threadIdx.x); commit();
  {wait} {barrier}
  x[threadIdx.x] = held[63 - threadIdx.x];"""
    for seed in "017":
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        x = run(body, tmp_path, threads=64)
        assert np.isnan(x).any() if not (wait and barrier) else np.array_equal(x, np.arange(64)[::-1])


@pytest.mark.parametrize("buffers", [1, 2])
def test_a_buffer_that_is_copied_to_while_it_is_read(buffers: int, tmp_path: Path) -> None:
    body = f"""
  alignas(16) __shared__ float held[2][64];
  float sum = 0;
  copy4(&held[0][threadIdx.x], x + threadIdx.x), commit();
  for (int i = 0; i < 2; ++i) {{
    wait<0>();
    __syncthreads();
    copy4(&held[(i + 1) % {buffers}][threadIdx.x], x + threadIdx.x), commit();
    sum += held[i % {buffers}][63 - threadIdx.x];
  }}
  __syncthreads();
  x[threadIdx.x] = sum;"""
    x = run(body, tmp_path, threads=64)
    assert np.array_equal(x, 2 * np.arange(64.0)[::-1]) if buffers == 2 else np.isnan(x).any()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("copy16(held, x + 1);", "cp.async from a misaligned address"),
        ("copy16(held + 1, x);", "misaligned address of shared memory"),
        ("copy16(held, x, 17);", "reads more than it writes"),
        ('asm("cp.async.cg.shared.global [%0], [%1], 8;" :: "r"(at(held)), "l"(x));', "a size that it does not have"),
        ('asm("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(1 << 30), "l"(x));', "outside of shared memory"),
        ("extern __shared__ float more[]; copy16(more + 60, x); copy16(more + 64, x);", "behind the launch's shared memory"),
        ("for (int i = 0; i < 300; ++i) copy16(held, x);", "more than 256 cp.async"),
        ("at(x);", "memory that is not shared"),
    ],
)  # fmt: skip
def test_a_wrong_copy_is_told(body: str, message: str, tmp_path: Path) -> None:
    kernel = Kernel(f"alignas(16) __shared__ float held[8]; held[0] = 1; {body}", tmp_path, before=COPY)
    assert message in kernel(np.zeros(64, np.float32), threads=1, shared=256)


def test_registers_predicates_and_labels(tmp_path: Path) -> None:
    """Names of PTX are its own: `p` and `LOOP` are also the kernel's."""
    body = """
  unsigned p = threadIdx.x, sum = 0;
  for (int LOOP = 0; LOOP < 2; ++LOOP)
    asm volatile("{\\n\\t.reg .pred p, q;\\n\\t.reg .b32 n;\\n\\t"  // what comes twice
                 "mov.u32 n, %1; setp.ne.u32 q, n, 3;\\n\\t"
                 "LOOP: setp.eq.u32 p, n, 7;\\n\\t@p bra DONE;\\n\\tselp.b32 n, 7, 7, q;\\n\\t"
                 "@!q mov.u32 n, 0x7; bra.uni LOOP;\\n\\tDONE:\\n\\t@q mov.u32 %0, n;\\n\\t"
                 "lop3.b32 %0, %0, n, 5, 0xe8; }"
                 : "+r"(sum) : "r"(p));
  x[threadIdx.x] = sum;"""
    majority = (7 & 7) | (7 & 5) | (7 & 5)
    np.testing.assert_array_equal(run(body, tmp_path)[:4], [majority, majority, majority, (0 & 7) | (0 & 5) | (7 & 5)])


MMA = """
using T = %(type)s;
__device__ __forceinline__ unsigned at(const void *p) { return __cvta_generic_to_shared(p); }
__device__ __forceinline__ void load4(unsigned *d, unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4%(trans)s.shared.b16 {%%0,%%1,%%2,%%3}, [%%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(from));
}
__device__ __forceinline__ void load2(unsigned *d, unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2%(trans)s.shared.b16 {%%0, %%1}, [%%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(from));
}
__device__ __forceinline__ void load1(unsigned *d, unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1%(trans)s.shared.b16 {%%0}, [%%1];" : "=r"(d[0]) : "r"(from));
}
__device__ __forceinline__ void mma(%(sum)s *d, const unsigned *a, const unsigned *b) {
#if %(wide)d
  asm volatile("mma.sync.aligned.%(name)s {%%0,%%1,%%2,%%3}, {%%4,%%5,%%6,%%7}, {%%8,%%9}, {%%0,%%1,%%2,%%3};"
               : "+%(kind)s"(d[0]), "+%(kind)s"(d[1]), "+%(kind)s"(d[2]), "+%(kind)s"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  asm volatile("mma.sync.aligned.%(name)s {%%0,%%1,%%2,%%3}, {%%4,%%5}, {%%6}, {%%0,%%1,%%2,%%3};"
               : "+%(kind)s"(d[0]), "+%(kind)s"(d[1]), "+%(kind)s"(d[2]), "+%(kind)s"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#endif
}
"""
TILE = """
  constexpr int row = 16 * (1 + WIDE);  // bytes
  alignas(16) __shared__ char left[16 * row], right[8 * row];
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * row; i += 32) left[i] = ((char *)a)[i];
  for (int i = lane; i < 8 * row; i += 32) right[i] = ((char *)b)[i];
  __syncwarp();
  unsigned l[4], r[2];
  if (WIDE) load4(l, at(left + lane % 16 * row + lane / 16 * 16)), load2(r, at(right + lane % 8 * row + lane / 8 % 2 * 16));
  else load2(l, at(left + lane % 16 * row)), load1(r, at(right + lane % 8 * row));
  SUM d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  mma(d, l, r);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];"""
FORMATS = {
    "m16n8k16.row.col.f32.f16.f16.f32": ("half", np.float16, 16),
    "m16n8k16.row.col.f32.bf16.bf16.f32": ("nv_bfloat16", ml_dtypes.bfloat16, 16),
    "m16n8k8.row.col.f32.f16.f16.f32": ("half", np.float16, 8),
    "m16n8k8.row.col.f32.bf16.bf16.f32": ("nv_bfloat16", ml_dtypes.bfloat16, 8),
    "m16n8k32.row.col.f32.e4m3.e4m3.f32": ("char", ml_dtypes.float8_e4m3fn, 32),
    "m16n8k32.row.col.s32.s8.s8.s32": ("char", np.int8, 32),
}


def mma_source(name: str, trans: str = "") -> str:
    kind, number, k = FORMATS[name]
    total = "int" if number is np.int8 else "float"
    fields = {"name": name, "type": kind, "sum": total, "kind": "r" if total == "int" else "f", "wide": k * np.dtype(number).itemsize == 32}
    return f"#define WIDE {fields['wide']:d}\n#define SUM {total}\n{MMA % {**fields, 'trans': trans}}"


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_multiply(name: str, tmp_path: Path) -> None:
    _, number, k = FORMATS[name]
    random, whole = np.random.default_rng(0), number is np.int8
    a, b = (random.integers(-128, 128, (n, k)).astype(np.int8) if whole else random.standard_normal((n, k)).astype(number) for n in (16, 8))
    c = random.integers(-99, 99, (16, 8)).astype(np.int32 if whole else np.float32)
    expected = c + a.astype(np.float64) @ b.astype(np.float64).T
    assert Kernel(TILE, tmp_path, "void *a, void *b, SUM *c", mma_source(name))(a, b, c, threads=32) == ""
    np.testing.assert_allclose(c, expected, rtol=0, atol=0 if whole else 3e-5)


def test_a_transposed_matrix_is_loaded(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a, c = random.standard_normal((16, 16)).astype(np.float16), np.zeros((16, 16), np.float32)
    body = """
  alignas(16) __shared__ half held[16][16];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) held[i / 16][i % 16] = ((half *)a)[i];
  __syncwarp();
  unsigned l[4], r[2];
  load4(l, at(&held[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]));  // rows and columns change places
  for (int n = 0; n < 2; ++n) {
    float d[4] = {0, 0, 0, 0};
    load2(r, at(&held[lane % 16][8 * n]));
    mma(d, l, r);
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 16 + 8 * n + lane % 4 * 2 + i % 2] = d[i];
  }"""
    source = mma_source("m16n8k16.row.col.f32.f16.f16.f32", ".trans")
    assert Kernel(body, tmp_path, "void *a, float *c", source)(a, c, threads=32) == ""
    np.testing.assert_allclose(c, a.T.astype(np.float64) @ a.astype(np.float64), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("body", "threads", "message"),
    [
        ("if (threadIdx.x < 16) mma(d, l, l);", 32, "not all of its lanes reach"),
        ("if (threadIdx.x < 16) mma(d, l, l); else __syncwarp();", 32, "in different instructions"),
        ("if (threadIdx.x > 9) mma(d, l, l);", 32, "some lanes have ended"),
        ("mma(d, l, l);", 40, "some lanes have ended"),
        ("load4(l, at(held) + 4 * threadIdx.x);", 32, "misaligned address of shared memory"),
    ],
    ids=["half a warp", "another instruction", "lanes have ended", "too few lanes", "a row within 16 bytes"],
)
def test_a_wrong_use_is_told(body: str, threads: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = "" if "> 9" in body else "__syncthreads();"
    body = f"alignas(16) __shared__ char held[512]; held[0] = 0; float d[4] = {{}}; unsigned l[4] = {{}}; {body} {after} *c = d[0] + l[0];"
    kernel = Kernel(body, tmp_path, "float *c", mma_source("m16n8k16.row.col.f32.f16.f16.f32"))
    for seed in "017":
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        assert message in kernel(np.zeros(1, np.float32), threads=threads)


def test_pairs_of_halves(tmp_path: Path) -> None:
    body = """
  const unsigned i = threadIdx.x;
  half2 h = __floats2half2_rn(x[i], 0.1f), g = __float22half2_rn(make_float2(3, x[i]));
  unsigned bits = *reinterpret_cast<unsigned *>(&h);
  h = __hfma2(*reinterpret_cast<half2 *>(&bits), g, __hmul2(__hadd2(h, g), __hsub2(h, g)));
  nv_bfloat162 b = __hfma2(__float22bfloat162_rn(__half22float2(h)), __float2bfloat162_rn(1.5f), __floats2bfloat162_rn(x[i], 1));
  x[i] = __half22float2(h).x, x[32 + i] = __bfloat1622float2(b).y;"""
    n = np.arange(32, dtype=np.float16)
    first = n * np.float16(3) + (n + np.float16(3)) * (n - np.float16(3))  # exact
    tenth = np.float16(0.1)
    product = ((tenth + n) * (tenth - n)).astype(np.float64)
    second = (np.float64(tenth) * n + product).astype(np.float16).astype(ml_dtypes.bfloat16)
    third = (second.astype(np.float64) * 1.5 + 1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(body, tmp_path), np.concatenate([first.astype(np.float32), third.astype(np.float32)]))


def test_bytes_are_picked(tmp_path: Path) -> None:
    body = """
  unsigned picked;
  asm("prmt.b32 %0, %1, %2, 0xa147;" : "=r"(picked) : "r"(0x83020100), "r"(0x07060584));
  const unsigned same = __byte_perm(0x83020100, 0x07060584, 0xa147) == picked;
  x[0] = picked >> 16, x[1] = picked & 0xffff, x[2] = same, x[3] = __saturatef(-x[1]), x[4] = __saturatef(0.5f), x[5] = __saturatef(7);"""
    np.testing.assert_array_equal(run(body, tmp_path, threads=1)[:6], [0x0001, 0x8407, 1, 0, 0.5, 1])


@pytest.mark.parametrize(("kind", "number"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_floats_of_8_bits(kind: str, number: type[np.generic], tmp_path: Path) -> None:
    """All codes to floats, alone and in twos and fours; and floats to codes, the greatest for those that are too large."""
    body = """
  const int i = threadIdx.x;
  const unsigned *at = (unsigned *)codes + i;
  const float2 low = __half22float2((half2)(*(F2 *)at));
  unsigned high;
  unsigned short pair;
  asm("cvt.rn.f16x2.KINDx2 %0, %1;" : "=r"(high) : "h"((unsigned short)(*at >> 16)));
  asm("cvt.rn.satfinite.KINDx2.f32 %0, %1, %2;" : "=h"(pair) : "f"(x[2 * i + 1]), "f"(x[2 * i]));
  for (int j = 0; j < 4; ++j) out[4 * i + j] = (float)codes[4 * i + j];
  ((float4 *)out)[64 + i] = (float4)(*(F4 *)at);
  ((float2 *)out)[256 + 2 * i] = low, ((float2 *)out)[257 + 2 * i] = __half22float2(*(half2 *)&high);
  rounded[2 * i] = (F)x[2 * i], rounded[2 * i + 1] = (F)x[2 * i + 1];
  ((unsigned short *)rounded)[64 + i] = pair;"""
    codes = np.arange(256, dtype=np.uint8).view(number)
    random, most = np.random.default_rng(0), float(ml_dtypes.finfo(number).max)
    x = (random.choice([-1, 1], 128) * np.exp(random.uniform(np.log(most) - 20, np.log(most) + 2, 128))).astype(np.float32)
    x[:6] = [0, np.inf, -np.inf, most, most * 1.03, float(ml_dtypes.finfo(number).smallest_subnormal) * 1.5]
    out, rounded = np.zeros((3, 256), np.float32), np.zeros((2, 128), number)
    before = f"using F = __nv_fp8_{kind}; using F2 = __nv_fp8x2_{kind}; using F4 = __nv_fp8x4_{kind};"
    kernel = Kernel(body.replace("KIND", kind), tmp_path, "const F *codes, const float *x, float *out, F *rounded", before)
    assert kernel(codes, x, out, rounded) == ""
    np.testing.assert_array_equal(out, np.tile(codes.astype(np.float32), (3, 1)))
    np.testing.assert_array_equal(rounded.astype(np.float32), np.tile(np.clip(x, -most, most).astype(number).astype(np.float32), (2, 1)))


@pytest.mark.parametrize(
    "instruction", ["mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0}, {%1}, {%2}, {%0}", "mbarrier.pending_count.b64 a, b"]
)
def test_other_instructions_are_refused_by_name(instruction: str) -> None:
    with pytest.raises(UnsupportedError, match=instruction.split()[0]):
        translate(f'__global__ void kernel() {{ asm volatile("{{ {instruction}; }}" : "=d"(x) : "d"(y), "d"(z)); }}', ["kernel"])
