// What CUDA's headers bring beside threads, in clang's C++, for compilers of TVM's CUDA C++ that are not NVIDIA's. Who includes it has <stdint.h>'s
// and <stddef.h>'s types, the functions of <math.h>, and CUPOLA_COPIED(V), which says in the struct V how it begins and is copied.
#pragma once

// ---- Types. A load or store of a vector must be aligned.
template <class T, int N, size_t A>
struct alignas(A) cupola_vector;
template <class T, size_t A>
struct alignas(A) cupola_vector<T, 1, A> {
  T x;
  CUPOLA_COPIED(cupola_vector)
  cupola_vector(T x) : x(x) {}
};
template <class T, size_t A>
struct alignas(A) cupola_vector<T, 2, A> {
  T x, y;
  CUPOLA_COPIED(cupola_vector)
  cupola_vector(T x, T y) : x(x), y(y) {}
};
template <class T, size_t A>
struct alignas(A) cupola_vector<T, 3, A> {
  T x, y, z;
  CUPOLA_COPIED(cupola_vector)
  cupola_vector(T x, T y, T z) : x(x), y(y), z(z) {}
};
template <class T, size_t A>
struct alignas(A) cupola_vector<T, 4, A> {
  T x, y, z, w;
  CUPOLA_COPIED(cupola_vector)
  cupola_vector(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
};
#define CUPOLA_VECTORS(T, name)                                                    \
  using name##1 = cupola_vector<T, 1, sizeof(T)>;                                  \
  using name##2 = cupola_vector<T, 2, 2 * sizeof(T)>;                              \
  using name##3 = cupola_vector<T, 3, sizeof(T)>;                                  \
  using name##4 = cupola_vector<T, 4, (4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T))>;  \
  static inline name##1 make_##name##1(T x) { return {x}; }                        \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUPOLA_VECTORS(signed char, char)
CUPOLA_VECTORS(unsigned char, uchar)
CUPOLA_VECTORS(short, short)
CUPOLA_VECTORS(unsigned short, ushort)
CUPOLA_VECTORS(int, int)
CUPOLA_VECTORS(unsigned, uint)
CUPOLA_VECTORS(long long, longlong)
CUPOLA_VECTORS(unsigned long long, ulonglong)
CUPOLA_VECTORS(float, float)
CUPOLA_VECTORS(double, double)

// The compiler's own types of 16 bits, rounded after each operation (-ffloat16-excess-precision=none).
using __half = _Float16;
using half = _Float16;
using __nv_bfloat16 = __bf16;
using nv_bfloat16 = __bf16;
struct alignas(4) __half2 {
  half x, y;
  CUPOLA_COPIED(__half2)
  __half2(half a, half b) : x(a), y(b) {}
};
struct alignas(4) __nv_bfloat162 {
  nv_bfloat16 x, y;
  CUPOLA_COPIED(__nv_bfloat162)
  __nv_bfloat162(nv_bfloat16 a, nv_bfloat16 b) : x(a), y(b) {}
};
using half2 = __half2;
using nv_bfloat162 = __nv_bfloat162;
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half __float2half(float value) { return (half)value; }
static inline half __float2half_rn(float value) { return (half)value; }
static inline float __half2float(half value) { return (float)value; }
static inline nv_bfloat16 __float2bfloat16(float value) { return (nv_bfloat16)value; }
static inline nv_bfloat16 __float2bfloat16_rn(float value) { return (nv_bfloat16)value; }
static inline float __bfloat162float(nv_bfloat16 value) { return (float)value; }
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline bool __hgt(nv_bfloat16 a, nv_bfloat16 b) { return (float)a > (float)b; }
static inline bool __hlt(nv_bfloat16 a, nv_bfloat16 b) { return (float)a < (float)b; }
static inline unsigned short __half_as_ushort(half value) { return __builtin_bit_cast(unsigned short, value); }
static inline half __ushort_as_half(unsigned short value) { return __builtin_bit_cast(half, value); }
static inline unsigned short __bfloat16_as_ushort(nv_bfloat16 value) { return __builtin_bit_cast(unsigned short, value); }
static inline nv_bfloat16 __ushort_as_bfloat16(unsigned short value) { return __builtin_bit_cast(nv_bfloat16, value); }
static inline float __uint_as_float(unsigned value) { return __builtin_bit_cast(float, value); }
static inline unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
static inline float __int_as_float(int value) { return __builtin_bit_cast(float, value); }
static inline int __float_as_int(float value) { return __builtin_bit_cast(int, value); }

// ---- Functions
template <class T>
static inline T __ldg(const T* address) {
  return *address;
}
#define CUPOLA_MIN_MAX(T)                                  \
  static inline T min(T a, T b) { return a < b ? a : b; }  \
  static inline T max(T a, T b) { return a > b ? a : b; }
CUPOLA_MIN_MAX(int)
CUPOLA_MIN_MAX(unsigned)
CUPOLA_MIN_MAX(long)
CUPOLA_MIN_MAX(unsigned long)
CUPOLA_MIN_MAX(long long)
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
#define __expf expf  // glibc has names of its own with two underscores
#define __logf logf
#define __exp2f exp2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
#define __tanhf tanhf
#define __log2f log2f
#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
static inline float cupola_rsqrtf(float x) { return 1 / __builtin_sqrtf(x); }
#define rsqrtf cupola_rsqrtf  // which later C libraries have
static inline int __popc(unsigned value) { return __builtin_popcount(value); }
#define alignas(n) __attribute__((aligned(n)))  // may stand behind other words, as nvcc allows
