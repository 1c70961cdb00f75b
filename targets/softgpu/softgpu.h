// Runs CUDA C++ kernels on a CPU, to test them. A thread is a fiber with a stack of its own; fibers take turns where they wait for each other
// (barriers, warp collectives), and blocks run one after another. What a GPU leaves open is made to hurt: shared memory begins as NaN, and
// blocks and their threads run in the order that a seed gives. A fault ends the launch with a message.
//
// Not modelled: caches and memory order, independent progress of lanes between collectives, and time.
#pragma once
#include <math.h>  // and nothing of C++'s library, which would have to be compiled first
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __CUDA_ARCH__ 900
#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("softgpu_shared"), used))

namespace std {  // as much of it as TVM's code uses
template <class A, class B>
inline constexpr bool is_same_v = false;
template <class A>
inline constexpr bool is_same_v<A, A> = true;
}  // namespace std

struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};
struct softgpu_uint3 {
  unsigned x, y, z;
};

namespace softgpu {

#ifndef SOFTGPU_LANES
#define SOFTGPU_LANES 32
#endif
using Mask = uint64_t;  // a bit for each lane of a warp
constexpr unsigned kLanes = SOFTGPU_LANES, kWords = 4, kMaxThreads = 1024;
constexpr Mask kAll = ~(Mask)0 >> (64 - kLanes);
#ifdef SOFTGPU_ROCM
constexpr bool kMayPart = true;  // whether lanes may come to a barrier while others of their warp wait for each other elsewhere
#else
constexpr bool kMayPart = false;
#endif
constexpr size_t kStack = 64 << 10, kDynamic = 227 << 10;
constexpr uint64_t kCanary = 0x736f667467707521;  // at the end of each stack

struct Warp {
  Mask live;  // those of lanes that have not ended
  unsigned arrived, generation;
  const char* instruction;             // that they wait in, if all lanes must reach it
  uint32_t words[2][kLanes][kWords];   // what lanes hand to each other; two sets in turns, for who is late may still read the last one
};

struct Fiber {
  void* stack;
  const unsigned* awaited;  // it goes on once this is no longer `seen`
  unsigned seen, rank, lane;
  bool done;
  softgpu_uint3 index;
  Warp* warp;
};

static Fiber fibers[kMaxThreads];
static Fiber* me;
static Warp warps[kMaxThreads / kLanes];
static unsigned order[kMaxThreads], place[kMaxThreads];  // the order in which fibers take turns, and where each stands in it
static bool by_warps, last_first;
static unsigned num_threads, num_live, arrived, generation;  // the latter two of the block's barrier
static void* outside;
static size_t dynamic_bytes;  // of shared memory that the launch asked for
static softgpu_uint3 block_index, grid_size, block_size;
static void (*kernel)(void**);
static void** kernel_arguments;
static const char* failure;
alignas(1024) static char dynamic[kDynamic] __attribute__((section("softgpu_shared"), used));
extern "C" char __start_softgpu_shared[], __stop_softgpu_shared[];

extern "C" void softgpu_switch(void** save, void* load) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
asm(R"(
.text
.hidden softgpu_switch
.globl softgpu_switch
softgpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr unsigned kSaved = 6, kReturn = 6;  // words that a switch saves, and which of them is where it goes on
#elif defined(__aarch64__)
asm(R"(
.text
.hidden softgpu_switch
.globl softgpu_switch
softgpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr unsigned kSaved = 20, kReturn = 11;
#else
#error "softgpu has no context switch for this CPU"
#endif

static inline void fail(const char* what) {
  failure = what;
  softgpu_switch(&me->stack, outside);
}

// What -fsanitize=alignment calls: a load or store of a vector must be aligned, as on hardware.
struct Mismatch {
  struct {
    const char* file;
    uint32_t line, column;
  } at;
  const struct {
    uint16_t kind, info;
    char name[];
  } * type;
  uint8_t log_alignment, access;
};
extern "C" __attribute__((visibility("hidden"), noreturn)) void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* found, size_t) {
  static char text[160];
  snprintf(text, sizeof text, "a misaligned address: %s must lie at a multiple of %d bytes", found->type->name, 1 << found->log_alignment);
  fail(text);
  __builtin_unreachable();
}

// Lanes that wait for others which have ended, or went another way, go on without them, as on hardware.
static inline bool complete_a_warp() {
  for (unsigned w = 0; w * kLanes < num_threads; ++w)
    if (warps[w].arrived && !warps[w].instruction) {
      warps[w].arrived = 0;
      ++warps[w].generation;
      return true;
    }
  return false;
}

// Of bulk copies and mbarriers (hopper.h).
static void forget_asynchronous();
static bool complete_a_copy();
static const char* why_an_mbarrier();
static unsigned num_bulk_copies;

static inline const char* why_stuck() {
  for (unsigned w = 0; w * kLanes < num_threads; ++w)
    if (warps[w].arrived && warps[w].instruction) return "an instruction of a whole warp that not all of its lanes reach";
  const char* of_mbarrier = why_an_mbarrier();
  return of_mbarrier ? of_mbarrier : "threads wait for each other for ever: a barrier that not all threads of the block reach";
}

static inline void give_turn() {  // to the next fiber that can go on
  Fiber* self = me;
  const unsigned near = by_warps ? kLanes : 0;  // to another of the own warp, if there is one
  do {
    for (unsigned i = 1; i <= near + num_threads; ++i) {
      const unsigned lane = (self->lane + i) % kLanes, next = place[self->rank] + i - near;
      const unsigned rank = i <= near ? self->rank - self->lane + lane : order[next >= num_threads ? next - num_threads : next];
      Fiber& f = fibers[rank];
      if (rank >= num_threads || f.done || (f.awaited && *f.awaited == f.seen)) continue;
      f.awaited = nullptr;
      if (&f == self) return;
      me = &f;
      softgpu_switch(&self->stack, f.stack);
      return;
    }
    if (num_live && (complete_a_copy() || ((kMayPart || !arrived) && complete_a_warp()))) continue;
    if (num_live) failure = why_stuck();
    else if (num_bulk_copies) failure = "a block ends while its bulk copies are under way";
    break;
  } while (true);
  softgpu_switch(&self->stack, outside);
}

static inline void wait_while(const unsigned* word, unsigned seen) {
  me->awaited = word;
  me->seen = seen;
  give_turn();
}

static inline void barrier() {
  if (num_live != num_threads) fail("__syncthreads after some threads of the block have ended");
  if (++arrived == num_threads) {
    arrived = 0;
    ++generation;
  } else {
    wait_while(&generation, generation);
  }
}

struct Nothing {
  void operator()(uint32_t (*)[kWords]) const {}
};

// The lanes of `mask` meet; the last of them runs `all` over what each handed over. Gives that.
template <class All = Nothing>
static inline uint32_t (*meet(Mask mask, const char* instruction = nullptr, All all = {}))[kWords] {
  Warp& w = *me->warp;
  const unsigned set = w.generation & 1;
  if (!(mask >> me->lane & 1)) fail("a warp collective whose mask leaves out the lane that calls it");
  if (w.arrived && w.instruction != instruction) fail("lanes of a warp wait for each other in different instructions");
  w.instruction = instruction;
  if (++w.arrived >= (unsigned)__builtin_popcountll(mask & w.live)) {
    all(w.words[set]);
    w.arrived = 0;
    ++w.generation;
  } else {
    wait_while(&w.generation, w.generation);
  }
  return w.words[set];
}

template <class T>
static inline T exchange(Mask mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint32_t[kWords]));
  memcpy(me->warp->words[me->warp->generation & 1][me->lane], &value, sizeof(T));
  auto words = meet(mask);
  T result;
  memcpy(&result, words[from], sizeof(T));
  return result;
}

// All lanes of a warp meet in an instruction; the last of them runs `all` over pointers to what each brings, which lies on their stacks.
template <class T, class All>
static inline void together(const char* instruction, T& mine, All all) {
  if (me->warp->live != kAll) fail("an instruction of a whole warp where some lanes have ended");
  T* const pointer = &mine;
  memcpy(me->warp->words[me->warp->generation & 1][me->lane], &pointer, sizeof pointer);
  meet(kAll, instruction, [&](uint32_t (*words)[kWords]) {
    T* lanes[kLanes];
    for (unsigned l = 0; l < kLanes; ++l) memcpy(&lanes[l], words[l], sizeof lanes[l]);
    all(lanes);
  });
}

static void run_fiber() {
  for (;;) {
    kernel(kernel_arguments);
    if (arrived) fail("a thread ended while others wait for it in __syncthreads");
    Warp& w = *me->warp;
    w.live &= ~((Mask)1 << me->lane);
    me->done = true;
    --num_live;
    if (w.arrived && w.arrived >= (unsigned)__builtin_popcountll(w.live)) {
      if (w.instruction) fail("an instruction of a whole warp where some lanes have ended");
      w.arrived = 0;
      ++w.generation;
    }
    give_turn();
  }
}

// 0: first to last; 1: last to first, and in both a warp goes as far as it can; else shuffled, taking turns at each collective.
static inline void choose_order(unsigned seed) {
  by_warps = seed < 2, last_first = seed % 2;
  for (unsigned t = 0; t < num_threads; ++t) order[t] = seed == 1 ? num_threads - 1 - t : t;
  for (unsigned t = num_threads - 1, s = seed; seed > 1 && t > 0; --t) {
    s = s * 1664525u + 1013904223u;
    const unsigned other = (s >> 8) % (t + 1), held = order[t];
    order[t] = order[other], order[other] = held;
  }
  for (unsigned t = 0; t < num_threads; ++t) place[order[t]] = t;
}

// A cp.async under way: it happens in the wait that demands it, and what it overwrites is NaN until then.
struct Copy {
  char* to;
  const char* from;
  unsigned bytes, zeros, group;
};
constexpr unsigned kCopies = 256;
static struct {
  Copy ring[kCopies];
  unsigned first, end, group;  // copies first … end - 1 are under way; the group that the next will belong to
} copies[kMaxThreads];

static inline void begin_block(char* stacks) {
  memset(__start_softgpu_shared, 0xff, __stop_softgpu_shared - __start_softgpu_shared);  // NaN in every type of floats
  for (auto& w : warps) w.live = w.arrived = 0;
  forget_asynchronous();
  arrived = 0;
  num_live = num_threads;
  for (unsigned t = 0; t < num_threads; ++t) {
    Fiber& f = fibers[t];
    *(uint64_t*)(stacks + t * kStack) = kCanary;
    void** top = (void**)(stacks + (t + 1) * kStack - t * 320 % 8192) - 2;  // not all in the same sets of the cache
    f.stack = top - kSaved;
    memset(f.stack, 0, sizeof(void*) * kSaved);
    ((void**)f.stack)[kReturn] = (void*)run_fiber;
    copies[t].first = copies[t].end = copies[t].group = 0;
    f.awaited = nullptr, f.done = false, f.rank = t, f.lane = t % kLanes, f.warp = &warps[t / kLanes];
    f.warp->live |= (Mask)1 << f.lane;
    f.index = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
  }
}

// Gives null, or what went wrong.
static const char* launch(void (*entry)(void**), void** arguments, const int64_t* extents, int64_t shared_bytes, unsigned seed) {
  static char* stacks;
  if (!stacks) {
    const size_t size = kStack * (kMaxThreads + 1);  // one more, below, so that the first thread may need too much as well
    stacks = kStack + (char*)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  for (int i = 0; i < 6; ++i)
    if (extents[i] < 1 || extents[i] > 0x7fffffff || ((i == 1 || i == 2) && extents[i] > 65535)) return "more blocks than a grid may have";
  if (extents[3] * extents[4] * extents[5] > kMaxThreads) return "more than 1024 threads in a block";
  if (shared_bytes > (int64_t)kDynamic) return "more than 227 KiB of shared memory";
  grid_size = {(unsigned)extents[0], (unsigned)extents[1], (unsigned)extents[2]};
  block_size = {(unsigned)extents[3], (unsigned)extents[4], (unsigned)extents[5]};
  num_threads = block_size.x * block_size.y * block_size.z;
  dynamic_bytes = shared_bytes;
  kernel = entry, kernel_arguments = arguments, failure = nullptr;
  choose_order(seed);
  const uint64_t num_blocks = (uint64_t)grid_size.x * grid_size.y * grid_size.z;
  const uint64_t stride = seed > 1 ? 1000003 : 1;  // a prime, which visits every block where it does not divide their number
  for (uint64_t i = 0; i < num_blocks; ++i) {
    const uint64_t turn = num_blocks % stride ? i * stride % num_blocks : i, b = seed == 1 ? num_blocks - 1 - turn : turn;
    block_index = {(unsigned)(b % grid_size.x), (unsigned)(b / grid_size.x % grid_size.y), (unsigned)(b / grid_size.x / grid_size.y)};
    begin_block(stacks);
    me = &fibers[order[0]];
    softgpu_switch(&outside, me->stack);
    if (failure) return failure;
    for (unsigned t = 0; t < num_threads; ++t)
      if (*(uint64_t*)(stacks + t * kStack) != kCanary) return "a thread needs more than 64 KiB of stack";
  }
  return nullptr;
}

template <class T, T... I>
struct Indices {};
template <class... A, size_t... I>
static inline void call(void (*f)(A...), void** arguments, Indices<size_t, I...>) {
  f(*(A*)arguments[I]...);
}
template <class... A>
static inline void call(void (*f)(A...), void** arguments) {
  call(f, arguments, __make_integer_seq<Indices, size_t, sizeof...(A)>{});
}

struct Kernel {
  const char* name;
  const char* (*entry)(void** arguments, const int64_t* extents, int64_t shared_bytes, unsigned seed);
  const unsigned* sizes;  // bytes of each argument, then 0
};
template <class F>
struct Sizes;
template <class... A>
struct Sizes<void(A...)> {
  static constexpr unsigned bytes[] = {sizeof(A)..., 0};
};
}  // namespace softgpu

#define SOFTGPU_ENTRY(name)                                                                                                   \
  static const char* softgpu_launch_##name(void** arguments, const int64_t* extents, int64_t shared_bytes, unsigned seed) {   \
    return softgpu::launch([](void** given) { softgpu::call(name, given); }, arguments, extents, shared_bytes, seed);         \
  }
#define SOFTGPU_KERNEL(name) {#name, softgpu_launch_##name, softgpu::Sizes<decltype(name)>::bytes}

#define CUPOLA_COPIED(V) /* the compiler checks the alignment of copies only where they are not its own */ \
  V() = default;                                                                                           \
  V(const V& other) { memcpy(this, &other, sizeof *this); }                                                \
  V& operator=(const V& other) {                                                                           \
    memcpy(this, &other, sizeof *this);                                                                    \
    return *this;                                                                                          \
  }
template <class To, class From>
static inline To softgpu_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
static inline unsigned short softgpu_to_bf16(float value) {
  const uint32_t bits = softgpu_bits<uint32_t>(value);
  return value != value ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
extern "C" __attribute__((visibility("hidden"), weak)) __bf16 __truncsfbf2(float value) {  // which not every compiler brings along
  return softgpu_bits<__bf16>(softgpu_to_bf16(value));
}

#if !defined(SOFTGPU_METAL) && !defined(SOFTGPU_ROCM)  // the rest is CUDA's
#define threadIdx (softgpu::me->index)
#define blockIdx (softgpu::block_index)
#define blockDim (softgpu::block_size)
#define gridDim (softgpu::grid_size)

static inline void __syncthreads() { softgpu::barrier(); }
static inline void __threadfence() {}  // blocks run one after another
static inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned before = *address;
  *address = before >= most ? 0 : before + 1;
  return before;
}
static inline void __syncwarp(unsigned mask = ~0u) { softgpu::meet(mask); }

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return softgpu::exchange(mask, value, (softgpu::me->lane & ~(width - 1)) | (lane & (width - 1)));
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = softgpu::me->lane;
  return softgpu::exchange(mask, value, (lane & (width - 1)) + delta < (unsigned)width ? lane + delta : lane);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = softgpu::me->lane;
  return softgpu::exchange(mask, value, ((lane ^ bits) & (width - 1)) | (lane & ~(width - 1)));
}

#include "../gpu/types.h"

static inline float softgpu_fma(double a, double b, double c) {  // to odd, so that rounding to 16 bits rounds once
  const double exact = fma(a, b, c);
  const float near = (float)exact;
  if (near == exact || exact != exact) return near;
  return softgpu_bits<float>(softgpu_bits<uint32_t>(near) - (fabsf(near) > fabs(exact)) | 1);
}
#define SOFTGPU_16(T, T2, lanes, from, to)                                                                                      \
  static inline T __hneg(T a) { return -a; }                                                                                    \
  static inline T __hadd(T a, T b) { return (T)((float)a + (float)b); }                                                         \
  static inline T __hsub(T a, T b) { return (T)((float)a - (float)b); }                                                         \
  static inline T __hmul(T a, T b) { return (T)((float)a * (float)b); }                                                         \
  static inline T __hfma(T a, T b, T c) { return (T)softgpu_fma((float)a, (float)b, (float)c); }                                \
  static inline T __hmax(T a, T b) { return (T)fmaxf((float)a, (float)b); }                                                     \
  static inline T __hmin(T a, T b) { return (T)fminf((float)a, (float)b); }                                                     \
  static inline T2 __hneg2(T2 a) { return {__hneg(a.x), __hneg(a.y)}; }                                                         \
  static inline T2 __hadd2(T2 a, T2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }                                         \
  static inline T2 __hsub2(T2 a, T2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }                                         \
  static inline T2 __hmul2(T2 a, T2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }                                         \
  static inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }                         \
  static inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                                         \
  static inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                                         \
  static inline T __hmax_nan(T a, T b) { return a != a || b != b ? a + b : __hmax(a, b); }                                      \
  static inline T __hmin_nan(T a, T b) { return a != a || b != b ? a + b : __hmin(a, b); }                                    \
  static inline T2 __hmax2_nan(T2 a, T2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }                           \
  static inline T2 __hmin2_nan(T2 a, T2 b) { return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }                           \
  static inline T2 __halves2##lanes(T a, T b) { return {a, b}; }                                                                \
  static inline T2 __float2##lanes##_rn(float a) { return {(T)a, (T)a}; }                                                       \
  static inline T2 __floats2##lanes##_rn(float a, float b) { return {(T)a, (T)b}; }                                             \
  static inline T2 __float22##lanes##_rn(float2 a) { return {(T)a.x, (T)a.y}; }                                                 \
  static inline float2 from(T2 a) { return {(float)a.x, (float)a.y}; }                                                          \
  static inline T2 to(T a) { return {a, a}; }                                                                                   \
  static inline float __low2float(T2 a) { return (float)a.x; }                                                                  \
  static inline float __high2float(T2 a) { return (float)a.y; }
SOFTGPU_16(half, half2, half2, __half22float2, __half2half2)
SOFTGPU_16(nv_bfloat16, nv_bfloat162, bfloat162, __bfloat1622float2, __bfloat162bfloat162)
static inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {  // 4 bits of `selectors` a byte, the highest for its sign
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned selector = selectors >> 4 * i, byte = both >> 8 * (selector & 7) & 0xff;
    result |= (selector & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << 8 * i;
  }
  return result;
}
namespace softgpu {
template <class A, class B>
static inline int dp4a(unsigned a, unsigned b, int sum) {
  for (int i = 0; i < 4; ++i) sum += (A)(a >> 8 * i) * (B)(b >> 8 * i);
  return sum;
}
}  // namespace softgpu
static inline int __dp4a(int a, int b, int sum) { return softgpu::dp4a<int8_t, int8_t>(a, b, sum); }
#include "fp8.h"
#include "ptx.h"
#include "hopper.h"
#endif
