// Products by matrix units: a wavefront adds 16 × 16 × 16 products of numbers of 16 bits to 16 × 16 sums in float32. MFMA of gfx942, WMMA of
// gfx1100; which lane holds what is from AMD's manuals of the instruction sets, CDNA 3 (7.1.4) and RDNA 3 (7.9), as `targets/gpu/units.py` has it.
//
// A lane has a row of x and two rows of a weight, of which a part of a slice is four words. Of MFMA a lane has one part, of WMMA all four.
#pragma once

#define DEVICE static __device__ __forceinline__

namespace rocm {
template <class T, int N>
using vector = T __attribute__((ext_vector_type(N)));

#if defined(__gfx942__)
constexpr int kSums = 4, kParts = 1;
DEVICE vector<float, 4> multiply(vector<half, 4> a, vector<half, 4> b, vector<float, 4> sums) {
  return __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sums, 0, 0, 0);
}
DEVICE vector<float, 4> multiply(vector<nv_bfloat16, 4> a, vector<nv_bfloat16, 4> b, vector<float, 4> sums) {
  using Bits = vector<short, 4>;
  return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Bits, a), __builtin_bit_cast(Bits, b), sums, 0, 0, 0);
}
#elif defined(__gfx1100__)
constexpr int kSums = 8, kParts = 4;
DEVICE vector<float, 8> multiply(vector<half, 16> a, vector<half, 16> b, vector<float, 8> sums) {
  return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, sums);
}
DEVICE vector<float, 8> multiply(vector<nv_bfloat16, 16> a, vector<nv_bfloat16, 16> b, vector<float, 8> sums) {
  using Bits = vector<short, 16>;
  return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Bits, a), __builtin_bit_cast(Bits, b), sums);
}
#endif

// The operand of a step of a slice, of a lane's parts, which are `apart` words apart. All lanes of a row have the step's half of each part, or,
// where they have all parts, those of the step.
template <class T>
DEVICE vector<T, 4 * kParts> operand(const int* words, int apart, int step) {
  vector<int, 2 * kParts> held;
#pragma unroll
  for (int i = 0; i < 2 * kParts; ++i) held[i] = words[kParts == 1 ? 2 * step + i : (2 * step + i / 4) * apart + i % 4];
  return __builtin_bit_cast(decltype(vector<T, 4 * kParts>{}), held);
}

template <class T>
DEVICE void add_product(float* sums, vector<T, 4 * kParts> x, vector<T, 4 * kParts> y) {
  vector<float, kSums> held;
#pragma unroll
  for (int i = 0; i < kSums; ++i) held[i] = sums[i];
  held = multiply(x, y, held);
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = held[i];
}

// The sums of both rows of a weight; x is the first matrix.
template <class T>
DEVICE void add_products(float* low, float* high, const int* weight, int apart, const int* x, int step) {
  const auto rows = operand<T>(x, 4, step);
  add_product<T>(low, rows, operand<T>(weight, apart, step));
  add_product<T>(high, rows, operand<T>(weight + 4, apart, step));
}

template <class T>
DEVICE void add_slice(float* sums, const int* a, const int* b) {
  add_product<T>(sums, operand<T>(a, 4, 0), operand<T>(b, 4, 0));
  add_product<T>(sums, operand<T>(a, 4, 1), operand<T>(b, 4, 1));
#if defined(__AMDGCN__) && defined(__gfx1100__)
  // Multiplied here: clang would do it behind barriers, and until then have no registers left.
  vector<float, kSums> held;
#pragma unroll
  for (int i = 0; i < kSums; ++i) held[i] = sums[i];
  asm volatile("" : "+v"(held));
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = held[i];
#endif
}
}  // namespace rocm

DEVICE void multiply_float16(float* low, float* high, const int* weight, int apart, const int* x, int step) {
  rocm::add_products<half>(low, high, weight, apart, x, step);
}
DEVICE void multiply_bfloat16(float* low, float* high, const int* weight, int apart, const int* x, int step) {
  rocm::add_products<nv_bfloat16>(low, high, weight, apart, x, step);
}

// The sums of rows of two matrices over a slice, of which a lane has four words of each of its parts.
DEVICE void multiply_slice_float16(float* sums, const int* a, const int* b) { rocm::add_slice<half>(sums, a, b); }
DEVICE void multiply_slice_bfloat16(float* sums, const int* a, const int* b) { rocm::add_slice<nv_bfloat16>(sums, a, b); }

#if defined(__gfx1100__)
// Four words of each of a row's four parts, of which the first lane of the row has the even ones, and the second lane the others.
DEVICE void gather_row(int* all, const int* own) {
  const bool is_second = rocm::lane() & 16;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int other = rocm::from_lane(own[i], rocm::lane() ^ 16), part = i / 4 * 8 + i % 4;
    all[part] = is_second ? other : own[i], all[part + 4] = is_second ? own[i] : other;
  }
}
#endif

DEVICE void store_16(void* to, const int* from) { *(int4*)to = make_int4(from[0], from[1], from[2], from[3]); }

// Over the lanes that have a row: four of gfx942, two of gfx1100.
DEVICE float highest_of_row(float value) {
  value = fmaxf(value, rocm::from_lane(value, rocm::lane() ^ 16));
  return rocm::kParts == 1 ? fmaxf(value, rocm::from_lane(value, rocm::lane() ^ 32)) : value;
}
DEVICE float sum_of_row(float value) {
  value += rocm::from_lane(value, rocm::lane() ^ 16);
  return rocm::kParts == 1 ? value + rocm::from_lane(value, rocm::lane() ^ 32) : value;
}

#include "../gpu/numbers.cuh"
#include "../gpu/tables.cuh"

// 16 codes of 8 bits in words, as bfloat16.
DEVICE void store_codes(void* to, const int* words) {
  int pairs[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float codes[4];
    floats_of_int8(codes, words[i]);
    pairs[2 * i] = pair_bfloat16(codes[0], codes[1]), pairs[2 * i + 1] = pair_bfloat16(codes[2], codes[3]);
  }
  store_16(to, pairs);
  store_16((int4*)to + 1, pairs + 4);
}

DEVICE void store_e4m3(void* to, const int* words) {  // as float16
  int pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) pairs[i] = bits_of(halves_of_e4m3(words[i / 2], i % 2));
  store_16(to, pairs);
  store_16((int4*)to + 1, pairs + 4);
}

// The numbers of two keys, whose words follow one another, by dimensions: pairs of them, `stride` numbers apart.
DEVICE void store_turned_pairs(void* to, int stride, int dim, unsigned first, unsigned second) {
  *(unsigned*)((short*)to + dim * stride) = first & 0xffff | second << 16;
  *(unsigned*)((short*)to + (dim + 1) * stride) = first >> 16 | second & 0xffff0000;
}
DEVICE void store_turned_16(void* to, int stride, const int* words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) store_turned_pairs(to, stride, 2 * i, words[i], words[i + 4]);
}
DEVICE void store_turned_e4m3(void* to, int stride, const int* words) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    store_turned_pairs(to, stride, 2 * i, bits_of(halves_of_e4m3(words[i / 2], i % 2)), bits_of(halves_of_e4m3(words[i / 2 + 4], i % 2)));
}
DEVICE void store_turned_codes(void* to, int stride, const int* words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float first[4], second[4];
    floats_of_int8(first, words[i]), floats_of_int8(second, words[i + 4]);
#pragma unroll
    for (int j = 0; j < 4; ++j) *(unsigned*)((short*)to + (4 * i + j) * stride) = pair_bfloat16(first[j], second[j]);
  }
}
