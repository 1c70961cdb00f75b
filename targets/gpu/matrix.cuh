/* What kernels for CUDA call: copies into shared memory that nobody waits for, products of matrix units, and codes made numbers.

   Fragments are those of mma.m16n8k16 (PTX ISA 8.5, 9.7.14.5.8), pairs of 16-bit floats in words. A lane has a row r = lane / 4 and
   columns from c = 2 (lane % 4) on: of A (16 x 16) the words at (r, c), (r + 8, c), (r, c + 8), (r + 8, c + 8), of B (16 x 8) those at
   (c, r), (c + 8, r), and of the sums (16 x 8) the floats at (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1). */

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEVICE static __device__ __forceinline__

/* 16 bytes; `to` lies in shared memory. */
DEVICE void copy_16(void *to, const void *from) {
  const unsigned address = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

/* Makes a group of the thread's copies since the last one. */
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Waits until at most `count` of the thread's groups are under way. */
template <int count>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(count) : "memory");
}

DEVICE void multiply_float16(float *sums, const int *a, const int *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void multiply_bfloat16(float *sums, const int *a, const int *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE unsigned bits_of(half2 value) { return *(const unsigned *)&value; }
DEVICE unsigned bits_of(nv_bfloat162 value) { return *(const unsigned *)&value; }
DEVICE half2 halves(unsigned bits) { return *(const half2 *)&bits; }

/* Two floats, the former in the lower half, rounded to nearest even. What float16 can't hold becomes its largest number; NaN stays. */
DEVICE unsigned pair_float16(float low, float high) {
  const half2 most = halves(0x7bff7bffu), least = halves(0xfbfffbffu);
  return bits_of(__hmax2_nan(__hmin2_nan(__floats2half2_rn(low, high), most), least));
}
DEVICE unsigned pair_bfloat16(float low, float high) { return bits_of(__floats2bfloat162_rn(low, high)); }

/* The codes in a lane's words of row r (`half` 0) or r + 8 (1), as numbers in the fragment's words of that row, every other one. `scales` and
   `mins` have both rows' in their halves: a number is scale * code + min, or without mins scale * (code - zero). 1024 with a code in its last
   bits is 1024 + code, and four bits further on 1024 + 16 code. */
template <int half, bool has_mins>
DEVICE int number(half2 code, unsigned scales, unsigned mins) {
  const half2 scale = halves(__byte_perm(scales, 0, half ? 0x3232 : 0x1010)), min = halves(__byte_perm(mins, 0, half ? 0x3232 : 0x1010));
  return bits_of(has_mins ? __hfma2(code, scale, min) : __hmul2(code, scale));
}

/* 8 codes of 4 bits: pair i lies at bits 4 i and 4 i + 16. */
template <int half, bool has_mins>
DEVICE void numbers_of_4_bits(int *numbers, unsigned codes, unsigned scales, unsigned mins) {
  const half2 base = halves(has_mins ? 0x64006400u : 0x64086408u); /* 1024, or 1024 + 8 */
  const half2 shifted = halves(has_mins ? 0xd400d400u : 0xd480d480u), sixteenth = halves(0x2c002c00u); /* -64, or -64 - 8 */
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned some = codes >> (i & 2) * 4;
    const half2 code = i & 1 ? __hfma2(halves((some & 0x00f000f0u) | 0x64006400u), sixteenth, shifted)
                             : __hsub2(halves((some & 0x000f000fu) | 0x64006400u), base);
    numbers[2 * i] = number<half, has_mins>(code, scales, mins);
  }
}

/* 4 codes of 8 bits, which have a sign where there are no mins. */
template <int half, bool has_mins>
DEVICE void numbers_of_8_bits(int *numbers, unsigned codes, unsigned scales, unsigned mins) {
  const unsigned from_zero = has_mins ? codes : codes ^ 0x80808080u;
  const half2 base = halves(has_mins ? 0x64006400u : 0x64806480u); /* 1024, or 1024 + 128 */
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const half2 code = __hsub2(halves(__byte_perm(from_zero, 0x64646464u, i ? 0x4342 : 0x4140)), base);
    numbers[2 * i] = number<half, has_mins>(code, scales, mins);
  }
}

/* 16 bytes. */
DEVICE void load_16(int *to, const void *from) {
  const int4 found = *(const int4 *)from;
  to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
}

/* The numbers in a word, the lowest bits first. */
DEVICE void floats_of_float32(float *to, int word) { to[0] = __int_as_float(word); }
DEVICE void floats_of_float16(float *to, int word) {
  const half2 both = halves(word);
  to[0] = __low2float(both), to[1] = __high2float(both);
}
DEVICE void floats_of_bfloat16(float *to, int word) { to[0] = __int_as_float(word << 16), to[1] = __int_as_float(word & 0xffff0000); }
DEVICE void floats_of_int8(float *to, int word) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = (float)(signed char)(word >> 8 * i);
}

/* True, for all of its threads, in the last of `count` blocks that come here by an index: what the others wrote before can be read. Counters
   begin at zero, and are back there when all have come. Kernels of a library run one after the other. */
static __device__ unsigned arrivals[1024];
DEVICE int is_last_block(int index, int count) {
  __shared__ unsigned before;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before = atomicInc(&arrivals[index], count - 1);
  __syncthreads();
  __threadfence();
  return before == count - 1;
}

/* 16 codes of 8 bits as bfloat16, which holds them all. */
DEVICE void copy_codes(void *to, const void *from) {
  const int4 found = *(const int4 *)from;
  const int words[4] = {found.x, found.y, found.z, found.w};
  int pairs[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float codes[4];
    floats_of_int8(codes, words[i]);
    pairs[2 * i] = pair_bfloat16(codes[0], codes[1]), pairs[2 * i + 1] = pair_bfloat16(codes[2], codes[3]);
  }
  ((int4 *)to)[0] = make_int4(pairs[0], pairs[1], pairs[2], pairs[3]);
  ((int4 *)to)[1] = make_int4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

DEVICE void store_float16(void *to, float value) { *(unsigned short *)to = pair_float16(value, 0); }
DEVICE void store_bfloat16(void *to, float value) { *(unsigned short *)to = pair_bfloat16(value, 0); }

/* The words of four matrices of 8 x 8 halves for B, turned: lane 8 i + j gives the address of row j of matrix i, in shared memory. */
DEVICE void load_transposed(int *words, const void *from) {
  const unsigned address = (unsigned)__cvta_generic_to_shared(from);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

/* Over the four lanes that have a row of sums. */
DEVICE float highest_of_four(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
DEVICE float sum_of_four(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
