// What TVM's CUDA C++ needs of CUDA, for AMD's GPUs: clang compiles it as HIP, without ROCm's headers and its library of device functions.
//
// A warp has 32 lanes here: a wavefront of gfx1100, half of one of gfx942. What lanes give each other stays within it, but for matrix units.
// `targets/softgpu/softrocm.h` brings the first part on a CPU, and what is built into the compiler.
#pragma once

#ifndef SOFTGPU_ROCM
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))

using int8_t = __INT8_TYPE__;
using int16_t = __INT16_TYPE__;
using int32_t = __INT32_TYPE__;
using int64_t = __INT64_TYPE__;
using uint8_t = __UINT8_TYPE__;
using uint16_t = __UINT16_TYPE__;
using uint32_t = __UINT32_TYPE__;
using uint64_t = __UINT64_TYPE__;
using size_t = __SIZE_TYPE__;
#endif

#pragma clang force_cuda_host_device begin
#ifndef SOFTGPU_ROCM
#include "functions.h"
#define CUPOLA_COPIED(V) V() = default;
#endif
#include "../gpu/types.h"
#include "pairs.h"
#pragma clang force_cuda_host_device end

#define threadIdx (uint3{__builtin_amdgcn_workitem_id_x(), __builtin_amdgcn_workitem_id_y(), __builtin_amdgcn_workitem_id_z()})
#define blockIdx (uint3{__builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(), __builtin_amdgcn_workgroup_id_z()})

static __device__ inline void __syncthreads() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
static __device__ inline void __syncwarp(unsigned mask = ~0u) {  // lanes of a wavefront go together
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
static __device__ inline void __threadfence() { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent"); }
static __device__ inline unsigned atomicInc(unsigned* address, unsigned most) {
  return __builtin_amdgcn_atomic_inc32(address, most, __ATOMIC_RELAXED, "agent");
}

namespace rocm {
static __device__ inline unsigned lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0)); }  // in its wavefront

template <class T>
static __device__ inline T from_lane(T value, unsigned from) {
  static_assert(sizeof(T) % sizeof(int) == 0);
  int words[sizeof(T) / sizeof(int)];
  __builtin_memcpy(words, &value, sizeof value);
  for (int& word : words) word = __builtin_amdgcn_ds_bpermute((int)(from * sizeof(int)), word);
  __builtin_memcpy(&value, words, sizeof value);
  return value;
}
}  // namespace rocm

template <class T>
static __device__ inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return rocm::from_lane(value, (rocm::lane() & -width) | (lane & (width - 1)));
}
template <class T>
static __device__ inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = rocm::lane();
  return rocm::from_lane(value, (lane & (width - 1)) + delta < (unsigned)width ? lane + delta : lane);
}
template <class T>
static __device__ inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = rocm::lane();
  return rocm::from_lane(value, ((lane ^ bits) & (width - 1)) | (lane & -width));
}

#include "matrix.h"
