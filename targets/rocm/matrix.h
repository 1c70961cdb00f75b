// Products by matrix units: a wavefront adds 16 × 16 × 16 products of numbers of 16 bits to 16 × 16 sums in float32, which its lanes share.
// MFMA of gfx942, WMMA of gfx1100; which lane holds what is from AMD's manuals of the instruction sets, CDNA 3 and RDNA 3. For kernels to call.
#pragma once

namespace rocm {
template <class T, int N>
using vector = T __attribute__((ext_vector_type(N)));

#if defined(__gfx942__)
constexpr int kSums = 4, kParts = 4;  // numbers that a lane holds: of the sums, and of a row of a or b, whose quarters four lanes share
static inline unsigned part_of(unsigned lane) { return lane / 16 * kParts; }
static inline unsigned row_of(unsigned lane, int i) { return lane / 16 * kSums + i; }
static inline vector<float, 4> multiply(vector<half, 4> a, vector<half, 4> b, vector<float, 4> sums) {
  return __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sums, 0, 0, 0);
}
static inline vector<float, 4> multiply(vector<nv_bfloat16, 4> a, vector<nv_bfloat16, 4> b, vector<float, 4> sums) {
  using Bits = vector<short, 4>;
  return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Bits, a), __builtin_bit_cast(Bits, b), sums, 0, 0, 0);
}
#elif defined(__gfx1100__)
constexpr int kSums = 8, kParts = 16;  // both halves of the wavefront hold all of a and b
static inline unsigned part_of(unsigned lane) { return 0; }
static inline unsigned row_of(unsigned lane, int i) { return 2 * i + lane / 16; }
static inline vector<float, 8> multiply(vector<half, 16> a, vector<half, 16> b, vector<float, 8> sums) {
  return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, sums);
}
static inline vector<float, 8> multiply(vector<nv_bfloat16, 16> a, vector<nv_bfloat16, 16> b, vector<float, 8> sums) {
  using Bits = vector<short, 16>;
  return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Bits, a), __builtin_bit_cast(Bits, b), sums);
}
#endif

// 16 × 16 sums. A lane's number i is that of row `row(i)` and column `column()`.
struct Sums {
  vector<float, kSums> held = 0;
  static inline unsigned row(int i) { return row_of(lane(), i); }
  static inline unsigned column() { return lane() % 16; }

  // Adds the products of 16 rows of a with 16 rows of b, 16 numbers of each row; strides are in numbers.
  template <class T>
  inline void add(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    held = multiply(read(a, a_stride), read(b, b_stride), held);
  }

 private:
  template <class T>
  static inline vector<T, kParts> read(const T* rows, size_t stride) {
    vector<T, kParts> part;
    __builtin_memcpy(&part, rows + lane() % 16 * stride + part_of(lane()), sizeof part);
    return part;
  }
};
}  // namespace rocm
