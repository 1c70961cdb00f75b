// PTX instructions, which `translate.py` calls by these functions (PTX ISA 8.5; the figures of section 9.7.14 say which lane holds what).
#pragma once
namespace softgpu {

// ---- Operands and addresses
struct Register {  // of 32 bits, that an instruction writes
  uint32_t* at;
  template <class T>
  Register(T& variable) : at((uint32_t*)&variable) {
    static_assert(sizeof(T) == 4);
  }
};
struct Word {  // of 32 bits, that it reads
  uint32_t bits;
  template <class T>
  Word(T value) : bits(softgpu_bits<uint32_t>(value)) {}
};

static inline size_t shared_offset(const void* address) {
  const size_t offset = (const char*)address - __start_softgpu_shared;
  if (offset >= (size_t)(__stop_softgpu_shared - __start_softgpu_shared)) fail("__cvta_generic_to_shared of memory that is not shared");
  return offset;
}

// The `bytes` of shared memory at an address there, which must be a multiple of `alignment`.
static inline char* shared(size_t address, size_t bytes, size_t alignment) {
  char* const at = __start_softgpu_shared + address;
  if (address + bytes > (size_t)(__stop_softgpu_shared - __start_softgpu_shared)) fail("an address outside of shared memory");
  if (at >= dynamic && at < dynamic + kDynamic && at + bytes > dynamic + dynamic_bytes) fail("an address behind the launch's shared memory");
  if ((size_t)at % alignment) fail("a misaligned address of shared memory");
  return at;
}

// ---- Asynchronous copies
template <char Cache>
static inline void cp_async(size_t to, size_t from, unsigned size, unsigned source_size) {
  auto& own = copies[me->rank];
  if (size != 16 && (Cache == 'g' || (size != 4 && size != 8))) fail("cp.async of a size that it does not have");
  if (source_size > size) fail("cp.async reads more than it writes");
  if (from % size) fail("cp.async from a misaligned address");
  if (own.end - own.first == kCopies) fail("more than 256 cp.async of a thread under way");
  Copy& copy = own.ring[own.end++ % kCopies];
  copy = {shared(to, size, size), (const char*)from, source_size, size - source_size, own.group};
  memset(copy.to, 0xff, size);
}
template <char Cache>
static inline void cp_async(size_t to, size_t from, unsigned size) {
  cp_async<Cache>(to, from, size, size);
}
static inline void cp_async_commit_group() { ++copies[me->rank].group; }
static inline void cp_async_wait_group(unsigned groups_left) {
  auto& own = copies[me->rank];
  for (; own.first != own.end; ++own.first) {
    const Copy& copy = own.ring[own.first % kCopies];
    if (copy.group + groups_left >= own.group) break;
    memcpy(copy.to, copy.from, copy.bytes);
    memset(copy.to + copy.bytes, 0, copy.zeros);
  }
}
static inline void cp_async_wait_all() {
  cp_async_commit_group();
  cp_async_wait_group(0);
}

// ---- Matrices
namespace ptx {
using f16 = half;
using bf16 = nv_bfloat16;
using f32 = float;
using s8 = int8_t;
using u8 = uint8_t;
using s32 = int32_t;
using e4m3 = __nv_fp8_e4m3;
using e5m2 = __nv_fp8_e5m2;
}  // namespace ptx

template <class T>
static inline T element(uint32_t word, int index) {
  T result;
  memcpy(&result, (char*)&word + index * sizeof(T), sizeof(T));
  return result;
}

// D[16, 8] = A[16, K] B[K, 8] + C. A register has E = 4 / sizeof elements. In register r of A, lane l holds row l / 4 + 8 (r % 2), columns
// E (l % 4 + 4 (r / 2)) and on; in one of B column l / 4, rows E (l % 4 + 4 r) and on; in one of C and D row l / 4 + 8 (r / 2), column
// 2 (l % 4) + r % 2. Sums go over k in its order, rounded at each step.
template <int K, class D, class A, class B, class C, int NA, int NB>
static inline void mma(const Register (&d)[4], const Word (&a)[NA], const Word (&b)[NB], const Word (&c)[4]) {
  constexpr int E = 4 / sizeof(A);
  static_assert(sizeof(A) == sizeof(B) && sizeof(C) == 4 && NA * 32 * E == 16 * K && NB * 32 * E == 8 * K);
  struct Operands {
    const Register* d;
    const Word *a, *b, *c;
  } mine{d, a, b, c};
  together("mma", mine, [](Operands** lanes) {
    D left[16][K], right[K][8], sum[16][8];
    for (int l = 0; l < (int)kLanes; ++l) {
      for (int r = 0; r < NA; ++r)
        for (int e = 0; e < E; ++e) left[l / 4 + 8 * (r % 2)][E * (l % 4 + 4 * (r / 2)) + e] = (D)element<A>(lanes[l]->a[r].bits, e);
      for (int r = 0; r < NB; ++r)
        for (int e = 0; e < E; ++e) right[E * (l % 4 + 4 * r) + e][l / 4] = (D)element<B>(lanes[l]->b[r].bits, e);
      for (int r = 0; r < 4; ++r) sum[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2] = softgpu_bits<C>(lanes[l]->c[r].bits);
    }
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < K; ++k)
        for (int j = 0; j < 8; ++j) sum[i][j] += left[i][k] * right[k][j];
    for (int l = 0; l < (int)kLanes; ++l)
      for (int r = 0; r < 4; ++r) *lanes[l]->d[r].at = softgpu_bits<uint32_t>(sum[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2]);
  });
}

// N matrices of 8 × 8 elements of 16 bits: lane 8 i + j has the address of row j of matrix i. In register i, lane l gets elements 2 (l % 4) and
// the next of row l / 4 of it, or of its transposed.
template <bool Transposed, int N>
static inline void ldmatrix(const Register (&d)[N], size_t address) {
  struct Operands {
    const Register* d;
    size_t address;
  } mine{d, address};
  together("ldmatrix", mine, [](Operands** lanes) {
    for (int i = 0; i < N; ++i) {
      uint16_t matrix[8][8];
      for (int j = 0; j < 8; ++j) memcpy(matrix[j], shared(lanes[8 * i + j]->address, 16, 16), 16);
      for (int l = 0; l < (int)kLanes; ++l) {
        const int row = l / 4, column = 2 * (l % 4);
        const uint32_t low = Transposed ? matrix[column][row] : matrix[row][column];
        const uint32_t high = Transposed ? matrix[column + 1][row] : matrix[row][column + 1];
        *lanes[l]->d[i].at = high << 16 | low;
      }
    }
  });
}

template <class F>
static inline half2 to_halves(unsigned short pair) {
  softgpu_fp8x2<F> from;
  from.__x = pair;
  return (half2)from;
}

// ---- Integers
static inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, unsigned table) {  // bit 4 a + 2 b + c of `table`, for each bit of them
  uint32_t result = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
}  // namespace softgpu
static inline size_t __cvta_generic_to_shared(const void* address) { return softgpu::shared_offset(address); }
