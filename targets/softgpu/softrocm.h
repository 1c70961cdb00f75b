// Runs kernels for AMD's GPUs on a CPU: what `targets/rocm/rocm.h` asks of the compiler, and then that header itself. SOFTGPU_LANES says how
// many lanes a wavefront has: 64 are gfx942's, 32 are gfx1100's.
#pragma once
#define SOFTGPU_ROCM
#include "softgpu.h"
#if SOFTGPU_LANES == 64
#define __gfx942__
#else
#define __gfx1100__
#endif

namespace softgpu {
static void forget_asynchronous() {}  // there are no such copies
static bool complete_a_copy() { return false; }
static const char* why_an_mbarrier() { return nullptr; }

// Lanes hand words to each other. Who reads from a lane that is not there, or went another way, gets 0 (ISA of CDNA 3, 12.17; of RDNA 3, 16.16).
static inline int bpermute(int address, int word) {
  Warp& w = *me->warp;
  const unsigned set = w.generation & 1, now = w.generation, from = (unsigned)address / 4 % kLanes;
  const uint32_t mine[2] = {(uint32_t)word, now};
  memcpy(w.words[set][me->lane], mine, sizeof mine);
  const auto words = meet(kAll);
  return words[from][1] == now ? words[from][0] : 0;
}

template <class T, int N>
using vector = T __attribute__((ext_vector_type(N)));
static inline float number(_Float16 value) { return (float)value; }
static inline float number(short bits) { return softgpu_bits<float>((uint32_t)(uint16_t)bits << 16); }  // of bfloat16

// D = A B + C of 16 × 16 matrices. Sums go over k in its order, rounded at each step.
struct Matrices {
  float a[16][16], b[16][16], sums[16][16];
  void multiply() {
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 16; ++j) sums[i][j] += a[i][k] * b[k][j];
  }
};
template <class Part, class Sums>
struct Operands {
  Part a, b;
  Sums sums;
};

// V_MFMA_F32_16X16X16_F16 and _BF16 (ISA of CDNA 3, 7.1.4). Lane l has of A row l % 16, columns 4 (l / 16) and on; of B column l % 16, rows
// 4 (l / 16) and on; of C and D column l % 16, rows 4 (l / 16) and on, each in a register. Lanes that are masked out take part.
template <class T>
static inline vector<float, 4> mfma(vector<T, 4> a, vector<T, 4> b, vector<float, 4> sums) {
  using Mine = Operands<vector<T, 4>, vector<float, 4>>;
  Mine mine{a, b, sums};
  together("v_mfma", mine, [](Mine** lanes) {
    Matrices all;
    for (int l = 0; l < (int)kLanes; ++l)
      for (int i = 0; i < 4; ++i) {
        all.a[l % 16][4 * (l / 16) + i] = number(lanes[l]->a[i]);
        all.b[4 * (l / 16) + i][l % 16] = number(lanes[l]->b[i]);
        all.sums[4 * (l / 16) + i][l % 16] = lanes[l]->sums[i];
      }
    all.multiply();
    for (int l = 0; l < (int)kLanes; ++l)
      for (int i = 0; i < 4; ++i) lanes[l]->sums[i] = all.sums[4 * (l / 16) + i][l % 16];
  });
  return mine.sums;
}

// V_WMMA_F32_16X16X16_F16 and _BF16 of 32 lanes (ISA of RDNA 3, 7.9). Lane l has of A row l % 16 and of B column l % 16, and lanes 16 to 31
// must have what lanes 0 to 15 have; of C and D column l % 16, rows l / 16, l / 16 + 2, …
template <class T>
static inline vector<float, 8> wmma(vector<T, 16> a, vector<T, 16> b, vector<float, 8> sums) {
  using Mine = Operands<vector<T, 16>, vector<float, 8>>;
  Mine mine{a, b, sums};
  bool is_same = true, *const same = &is_same;
  together("v_wmma", mine, [same](Mine** lanes) {
    Matrices all;
    for (int l = 0; l < (int)kLanes; ++l) {
      const bool is_copy = !memcmp(&lanes[l]->a, &lanes[l % 16]->a, sizeof(vector<T, 16>)) && !memcmp(&lanes[l]->b, &lanes[l % 16]->b, sizeof(vector<T, 16>));
      *same = *same && is_copy;
      for (int k = 0; k < 16; ++k) all.a[l % 16][k] = number(lanes[l]->a[k]), all.b[k][l % 16] = number(lanes[l]->b[k]);
      for (int i = 0; i < 8; ++i) all.sums[2 * i + l / 16][l % 16] = lanes[l]->sums[i];
    }
    all.multiply();
    for (int l = 0; l < (int)kLanes; ++l)
      for (int i = 0; i < 8; ++i) lanes[l]->sums[i] = all.sums[2 * i + l / 16][l % 16];
  });
  if (!is_same) fail("v_wmma wants in lanes 16 to 31 the operands of lanes 0 to 15");
  return mine.sums;
}

// V_PERM_B32: bytes 0 to 3 of `low` and 4 to 7 of `high`, by the bytes of `selectors`.
static inline unsigned permute(unsigned high, unsigned low, unsigned selectors) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> 8 * i & 0xff;
    if (selector > 7) fail("v_perm_b32 with a selector that is not modelled");
    result |= ((selector < 4 ? low : high) >> 8 * (selector & 3) & 0xff) << 8 * i;
  }
  return result;
}

static inline unsigned increment(unsigned* address, unsigned most) {
  const unsigned before = *address;
  *address = before >= most ? 0 : before + 1;
  return before;
}
}  // namespace softgpu

#define __builtin_amdgcn_workitem_id_x() (softgpu::me->index.x)
#define __builtin_amdgcn_workitem_id_y() (softgpu::me->index.y)
#define __builtin_amdgcn_workitem_id_z() (softgpu::me->index.z)
#define __builtin_amdgcn_workgroup_id_x() (softgpu::block_index.x)
#define __builtin_amdgcn_workgroup_id_y() (softgpu::block_index.y)
#define __builtin_amdgcn_workgroup_id_z() (softgpu::block_index.z)
#define __builtin_amdgcn_fence(order, scope) (void)0
#define __builtin_amdgcn_s_barrier() softgpu::barrier()
#define __builtin_amdgcn_wave_barrier() (void)softgpu::meet(softgpu::kAll)
#define __builtin_amdgcn_mbcnt_lo(mask, before) (before)
#define __builtin_amdgcn_mbcnt_hi(mask, before) (softgpu::me->lane)
#define __builtin_amdgcn_ds_bpermute(address, word) softgpu::bpermute(address, word)
#define __builtin_amdgcn_perm(high, low, selectors) softgpu::permute(high, low, selectors)
#define __builtin_amdgcn_atomic_inc32(address, most, order, scope) softgpu::increment(address, most)
#define __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, c, cbsz, abid, blgp) softgpu::mfma<_Float16>(a, b, c)
#define __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, c, cbsz, abid, blgp) softgpu::mfma<short>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, c) softgpu::wmma<_Float16>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, c) softgpu::wmma<short>(a, b, c)
#include "../rocm/rocm.h"
