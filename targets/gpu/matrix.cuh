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

#include "numbers.cuh"

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
