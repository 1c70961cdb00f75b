// Functions of CUDA's on pairs of numbers of 16 bits, and on bytes.
#pragma once

namespace rocm {
using Halves = half __attribute__((ext_vector_type(2)));
static inline Halves packed(half2 a) { return {a.x, a.y}; }
static inline half2 pair_of(Halves a) { return {a.x, a.y}; }
static inline half nan_or(half a, half b, half other) { return a != a ? a : b != b ? b : other; }
}  // namespace rocm

static inline half2 __hsub2(half2 a, half2 b) { return rocm::pair_of(rocm::packed(a) - rocm::packed(b)); }
static inline half2 __hmul2(half2 a, half2 b) { return rocm::pair_of(rocm::packed(a) * rocm::packed(b)); }
static inline half2 __hfma2(half2 a, half2 b, half2 c) {
  return rocm::pair_of(__builtin_elementwise_fma(rocm::packed(a), rocm::packed(b), rocm::packed(c)));
}
static inline half2 __hmax2_nan(half2 a, half2 b) {
  return {rocm::nan_or(a.x, b.x, a.x > b.x ? a.x : b.x), rocm::nan_or(a.y, b.y, a.y > b.y ? a.y : b.y)};
}
static inline half2 __hmin2_nan(half2 a, half2 b) {
  return {rocm::nan_or(a.x, b.x, a.x < b.x ? a.x : b.x), rocm::nan_or(a.y, b.y, a.y < b.y ? a.y : b.y)};
}
static inline half2 __floats2half2_rn(float a, float b) { return {(half)a, (half)b}; }
static inline nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {(nv_bfloat16)a, (nv_bfloat16)b}; }
static inline float __low2float(half2 a) { return (float)a.x; }
static inline float __high2float(half2 a) { return (float)a.y; }

static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {  // of 4 bits each; there are none that repeat a sign
  const unsigned pairs = (selectors & 0xff) | (selectors & 0xff00) << 8;
  return __builtin_amdgcn_perm(b, a, ((pairs & 0xf000f0) << 4 | (pairs & 0x0f000f)) & 0x07070707);
}
