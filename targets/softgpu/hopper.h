// PTX of compute capability 9: barriers in shared memory, bulk copies that complete them, and matrix products of warpgroups. All of it happens
// as late as it may: a copy when no thread can go on without it, a product in the wait that demands it.
//
// Not modelled: clusters of more than one block, and the proxies that `fence.proxy.async` orders.
#pragma once
#include "tensor_map.h"
namespace softgpu {

// ---- mbarrier. Its 64 bits in shared memory are the number of phases that are complete, and a name for the rest.
struct Mbarrier {
  unsigned expected, pending;  // arrivals of a phase, and those that this one lacks
  int bytes;                   // that it lacks
};
struct MbarrierWord {
  unsigned phases, name;
};
constexpr unsigned kMbarriers = 256, kMbarrierName = 0x6d620000, kMaxCount = (1 << 20) - 1;
static uint64_t sink;  // where results go that PTX calls `_`
static Mbarrier mbarriers[kMbarriers];
static unsigned num_mbarriers;

static inline MbarrierWord& mbarrier_word(size_t address) { return *(MbarrierWord*)shared(address, 8, 8); }
static inline bool is_mbarrier(const MbarrierWord& word) { return word.name - kMbarrierName < num_mbarriers; }
static inline Mbarrier& mbarrier_at(size_t address) {
  const MbarrierWord& word = mbarrier_word(address);
  if (!is_mbarrier(word)) fail("an mbarrier that was not initialised");
  return mbarriers[word.name - kMbarrierName];
}
static inline void mbarrier_init(size_t address, unsigned count) {
  MbarrierWord& word = mbarrier_word(address);
  if (is_mbarrier(word)) fail("mbarrier.init of one that is initialised already");
  if (count < 1 || count > kMaxCount) fail("mbarrier.init with a count outside of 1 … 1,048,575");
  if (num_mbarriers == kMbarriers) fail("more than 256 mbarriers in a block");
  mbarriers[num_mbarriers] = {count, count, 0};
  word = {0, kMbarrierName + num_mbarriers++};
}
static inline void mbarrier_inval(size_t address) {
  mbarrier_at(address);
  mbarrier_word(address) = {~0u, ~0u};
}
static inline void mbarrier_count(size_t address, unsigned arrivals, int bytes) {  // bytes: more to come, or fewer
  Mbarrier& barrier = mbarrier_at(address);
  if (arrivals > barrier.pending) fail("more arrivals at an mbarrier than its phase expects");
  barrier.pending -= arrivals;
  barrier.bytes += bytes;
  if (barrier.bytes > (int)kMaxCount || barrier.bytes < -(int)kMaxCount) fail("an mbarrier that expects more than 1,048,575 bytes");
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = barrier.expected;
  ++mbarrier_word(address).phases;
}
static inline uint64_t mbarrier_arrive(size_t address, unsigned arrivals = 1) {
  const uint64_t phases = mbarrier_word(address).phases;
  mbarrier_count(address, arrivals, 0);
  return phases;
}
static inline uint64_t mbarrier_arrive_expect_tx(size_t address, unsigned bytes) {
  const uint64_t phases = mbarrier_word(address).phases;
  if (bytes > kMaxCount) fail("an mbarrier that expects more than 1,048,575 bytes");
  mbarrier_count(address, 0, bytes);
  mbarrier_count(address, 1, 0);
  return phases;
}
static inline bool mbarrier_wait(size_t address, unsigned parity) {  // for the phase of a parity, until it is complete
  mbarrier_at(address);
  const MbarrierWord& word = mbarrier_word(address);
  if ((word.phases & 1) == (parity & 1)) wait_while(&word.phases, word.phases);
  return true;
}

// ---- Bulk copies
struct BulkCopy {
  size_t to, mbarrier;
  unsigned bytes;
  const char* from;
  TensorMap map;  // of a tile, which `from` is null for
  int first[TENSOR_MAP_RANK];
};
constexpr unsigned kBulkCopies = 256;
static BulkCopy bulk_copies[kBulkCopies];

static inline void begin_copy(const BulkCopy& copy, size_t alignment) {
  if (num_bulk_copies == kBulkCopies) fail("more than 256 bulk copies of a block under way");
  mbarrier_at(copy.mbarrier);
  memset(shared(copy.to, copy.bytes, alignment), 0xff, copy.bytes);
  bulk_copies[num_bulk_copies++] = copy;
}
static inline void bulk_copy(size_t to, size_t from, unsigned bytes, size_t mbarrier) {
  if (bytes % 16 || from % 16) fail("cp.async.bulk of or from what is not a multiple of 16 bytes");
  begin_copy({to, mbarrier, bytes, (const char*)from}, 16);
}
template <int Rank>
static inline void tile_copy(size_t to, size_t map, const int (&first)[Rank], size_t mbarrier) {
  BulkCopy copy = {to, mbarrier};
  if (map % 64) fail("a misaligned CUtensorMap");
  memcpy(&copy.map, (const void*)map, sizeof copy.map);
  if (copy.map.rank != Rank) fail("a tile of another rank than its CUtensorMap's");
  memcpy(copy.first, first, sizeof first);
  copy.bytes = copy.map.strides[0];
  for (int i = 0; i < Rank; ++i) copy.bytes *= copy.map.box[i];
  begin_copy(copy, 128);
}

// Chunks of 16 bytes change places within rows of `swizzle` bytes: chunk i lies at i ^ r in line r of 128 bytes, as far as a row has chunks.
static inline size_t swizzled(size_t address, unsigned swizzle) {
  return swizzle ? address ^ (address >> 7 & (swizzle / 16 - 1)) << 4 : address;
}

static inline void copy_tile(const BulkCopy& copy) {  // zeros where there is nothing
  const TensorMap& map = copy.map;
  const size_t size = map.strides[0];
  for (size_t at = 0; at < copy.bytes; at += size) {
    const char* from = map.base;
    bool inside = true;
    size_t rest = at / size;
    for (int i = 0; i < map.rank; rest /= map.box[i++]) {
      const int64_t index = copy.first[i] + (int64_t)(rest % map.box[i]);
      inside &= index >= 0 && index < map.sizes[i];
      from += index * (int64_t)map.strides[i];
    }
    char* const to = shared(swizzled(copy.to + at, map.swizzle), size, size);
    if (inside) memcpy(to, from, size);
    else memset(to, 0, size);
  }
}

static bool complete_a_copy() {  // the first or the last of them, by the seed: they come in any order
  if (!num_bulk_copies) return false;
  const unsigned picked = last_first ? num_bulk_copies - 1 : 0;
  const BulkCopy copy = bulk_copies[picked];
  memmove(bulk_copies + picked, bulk_copies + picked + 1, (--num_bulk_copies - picked) * sizeof copy);
  if (copy.from) memcpy(shared(copy.to, copy.bytes, 16), copy.from, copy.bytes);
  else copy_tile(copy);
  mbarrier_count(copy.mbarrier, 0, -(int)copy.bytes);
  return true;
}

static const char* why_an_mbarrier() {  // keeps threads waiting; null: none does
  static char text[160];
  for (unsigned t = 0; t < num_threads; ++t) {
    const size_t offset = (const char*)fibers[t].awaited - __start_softgpu_shared;
    if (fibers[t].done || offset >= (size_t)(__stop_softgpu_shared - __start_softgpu_shared)) continue;
    const Mbarrier& barrier = mbarrier_at(offset);
    const char* form = "threads wait for an mbarrier for ever: its phase lacks %u arrivals and %d bytes";
    snprintf(text, sizeof text, form, barrier.pending, barrier.bytes);
    return text;
  }
  return nullptr;
}

// ---- wgmma. D[64, N] = A[64, K] B[K, N] + D, K elements being 32 bytes. Each of four warps has 16 rows of D, and computes them by itself.
constexpr unsigned kProducts = 64, kAccumulators = 8, kMaxColumns = 256;
struct Accumulator {
  unsigned size, under_way;                  // floats of a lane; products that it waits for
  uint32_t* at[kLanes][kMaxColumns / 2];     // registers: NaN while products are under way
  float value[kLanes][kMaxColumns / 2];
};
struct Product {
  void (*run)(const Product&, unsigned warp);
  Accumulator* sum;
  uint64_t a, b;                  // descriptors
  bool in_registers, keep;        // whether A is; whether D is added to
  int sign_a, sign_b, transposed_a, transposed_b;
  uint32_t registers[kLanes][4];  // of A
  unsigned group;
};
static struct {
  Product ring[kProducts];
  unsigned first, end, group;  // products first … end - 1 are under way
  Accumulator accumulators[kAccumulators];
  bool fenced;
} products[kMaxThreads / kLanes];

// The float of T at row `mn` of A or column of B, and at `k`, behind a descriptor: address, leading and stride offset in units of 16 bytes, and
// swizzle (PTX ISA 9.7.15.5.1, CUTLASS's mma_traits_sm90_gmma.hpp).
template <class T>
static inline float matrix_element(uint64_t descriptor, bool transposed, unsigned mn, unsigned k) {
  const size_t lead = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4, start = (descriptor & 0x3fff) << 4;
  const unsigned mode = descriptor >> 62, swizzle = mode ? 256 >> mode : 0, row = swizzle ? swizzle : 16;  // bytes
  size_t at = start;
  if (transposed) {
    const unsigned byte = mn * sizeof(T);
    at += byte / row * (swizzle ? lead : stride) + k / 8 * (swizzle ? stride : lead) + k % 8 * row + byte % row;
  } else {
    const unsigned byte = k * sizeof(T);
    at += mn / 8 * stride + mn % 8 * row + (swizzle ? byte : byte / 16 * lead + byte % 16);
  }
  return (float)*(const T*)shared(swizzled(at, swizzle), sizeof(T), sizeof(T));
}

template <int N, class A, class B>
static void multiply(const Product& product, unsigned warp) {
  constexpr int K = 32 / sizeof(A), E = 4 / sizeof(A);
  static float left[16][K], right[K][N], sum[16][N];
  for (int i = 0; i < 16 && !product.in_registers; ++i)
    for (int k = 0; k < K; ++k) left[i][k] = product.sign_a * matrix_element<A>(product.a, product.transposed_a, 16 * (warp % 4) + i, k);
  for (int l = 0; l < (int)kLanes && product.in_registers; ++l)  // as mma's
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < E; ++e)
        left[l / 4 + 8 * (r % 2)][E * (l % 4 + 4 * (r / 2)) + e] = product.sign_a * (float)element<A>(product.registers[l][r], e);
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < N; ++j) right[k][j] = product.sign_b * matrix_element<B>(product.b, product.transposed_b, j, k);
  auto& value = product.sum->value;
  for (int l = 0; l < (int)kLanes; ++l)
    for (int r = 0; r < N / 2; ++r) sum[l / 4 + 8 * (r / 2 % 2)][2 * (l % 4) + r % 2 + 8 * (r / 4)] = product.keep ? value[l][r] : 0;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < N; ++j) sum[i][j] += left[i][k] * right[k][j];
  for (int l = 0; l < (int)kLanes; ++l)
    for (int r = 0; r < N / 2; ++r) value[l][r] = sum[l / 4 + 8 * (r / 2 % 2)][2 * (l % 4) + r % 2 + 8 * (r / 4)];
}

// The accumulator of some registers, which keeps what products under way add to it.
static inline Accumulator* accumulator(unsigned warp, unsigned size, const Register* (&d)[kLanes]) {
  auto& own = products[warp];
  Accumulator* found = nullptr;
  for (Accumulator& each : own.accumulators)
    if (each.size == size && each.at[0][0] == d[0][0].at) found = &each;
  for (Accumulator& each : own.accumulators)
    if (!found && !each.under_way) each.size = 0, found = &each;
  if (!found) fail("more than 8 accumulators of wgmma under way");
  if (found->under_way) return found;
  bool changed = !found->size;
  found->size = size;
  for (unsigned l = 0; l < kLanes; ++l)
    for (unsigned r = 0; r < size; ++r) {
      changed |= *d[l][r].at != softgpu_bits<uint32_t>(found->value[l][r]);
      found->at[l][r] = d[l][r].at;
      memcpy(&found->value[l][r], d[l][r].at, 4);
      *d[l][r].at = ~0u;
    }
  if (changed && !own.fenced) fail("wgmma.mma_async without a wgmma.fence after its registers were written");
  return found;
}

struct WgmmaOperands {
  const Register* d;
  Product product;
};
template <int N, class A, class B, int ND>
static inline void wgmma(const Register (&d)[ND], Product product) {
  static_assert(N % 8 == 0 && N >= 8 && N <= kMaxColumns && ND == N / 2 && sizeof(A) == sizeof(B));
  WgmmaOperands mine{d, product};
  together("wgmma.mma_async", mine, [](WgmmaOperands** lanes) {
    const unsigned warp = me->warp - warps;
    auto& own = products[warp];
    Product& kept = own.ring[own.end % kProducts];
    const Register* d[kLanes];
    if ((warp / 4 + 1) * 4 * kLanes > num_threads) fail("wgmma wants the four warps of a warpgroup");
    if (own.end - own.first == kProducts) fail("more than 64 products of wgmma under way");
    kept = lanes[0]->product;
    if (((kept.a | kept.b) >> 49 & 7)) fail("wgmma of a matrix descriptor with a base offset");
    for (unsigned l = 0; l < kLanes; ++l) {
      const Product& other = lanes[l]->product;
      if (kept.a != other.a || kept.b != other.b || kept.keep != other.keep) fail("lanes give wgmma different descriptors");
      memcpy(kept.registers[l], other.registers[0], sizeof other.registers[0]);
      d[l] = lanes[l]->d;
    }
    kept.run = multiply<N, A, B>, kept.group = own.group;
    kept.sum = accumulator(warp, ND, d);
    ++kept.sum->under_way, ++own.end;
  });
}
template <int N, class A, class B, int ND>
static inline void wgmma(const Register (&d)[ND], uint64_t a, uint64_t b, bool keep, int sign_a, int sign_b, int transposed_a = 0,
                         int transposed_b = 0) {
  wgmma<N, A, B>(d, {nullptr, nullptr, a, b, false, keep, sign_a, sign_b, transposed_a, transposed_b});
}
template <int N, class A, class B, int ND>
static inline void wgmma(const Register (&d)[ND], const Word (&a)[4], uint64_t b, bool keep, int sign_a, int sign_b, int transposed_b = 0) {
  wgmma<N, A, B>(d, {nullptr, nullptr, 0, b, true, keep, sign_a, sign_b, 0, transposed_b, {{a[0].bits, a[1].bits, a[2].bits, a[3].bits}}});
}

template <class All>
static inline void of_products(const char* instruction, All all) {  // once for a warp
  int nothing;
  together(instruction, nothing, [&](int**) { all(products[me->warp - warps]); });
}
static inline void wgmma_fence() {
  of_products("wgmma.fence", [](auto& own) { own.fenced = true; });
}
static inline void wgmma_commit_group() {
  of_products("wgmma.commit_group", [](auto& own) { ++own.group; });
}
static inline void wgmma_wait_group(unsigned groups_left) {
  of_products("wgmma.wait_group", [=](auto& own) {
    own.fenced = false;
    for (; own.first != own.end && own.ring[own.first % kProducts].group + groups_left < own.group; ++own.first) {
      const Product& product = own.ring[own.first % kProducts];
      Accumulator& sum = *product.sum;
      product.run(product, me->warp - warps);
      if (--sum.under_way) continue;
      for (unsigned l = 0; l < kLanes; ++l)
        for (unsigned r = 0; r < sum.size; ++r) memcpy(sum.at[l][r], &sum.value[l][r], 4);
    }
  });
}

static void forget_asynchronous() {  // at the start of a block
  num_mbarriers = num_bulk_copies = 0;
  for (unsigned w = 0; w * kLanes < num_threads; ++w) {
    auto& own = products[w];
    if (own.end)
      for (Accumulator& each : own.accumulators) each.size = each.under_way = 0;
    own.first = own.end = own.group = own.fenced = 0;
  }
}
}  // namespace softgpu
