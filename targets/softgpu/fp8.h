// CUDA's floats of 8 bits. A code with its exponent's offset corrected is the upper part of a half: of e5m2 as it is, of e4m3 divided by 256.
#pragma once

template <int Mantissa>
struct softgpu_fp8 {
  static constexpr bool kFinite = Mantissa == 3;  // e4m3 has one NaN of each sign, and no infinity
  static constexpr float kScale = kFinite ? 256 : 1, kMost = kFinite ? 448 : 57344;
  static constexpr int kShift = 10 - Mantissa, kLeast = kFinite ? -6 : -14;  // of the exponents of normal numbers
  unsigned char __x;

  softgpu_fp8() = default;
  template <class T>
  explicit softgpu_fp8(T number) {  // to the nearest, or else the greatest, as CUDA's conversions do
    const float value = (float)number, size = fminf(fabsf(value), kMost);
    const int exponent = size ? ilogbf(size) : 0;
    const float step = ldexpf(1, (exponent < kLeast ? kLeast : exponent) - Mantissa);
    const half rounded = (half)(nearbyintf(size / step) * step / kScale);
    __x = (value != value ? 0x7f : softgpu_bits<unsigned short>(rounded) >> kShift) | (signbit(value) ? 0x80 : 0);
  }
  operator float() const {
    const float size = kFinite && (__x & 0x7f) == 0x7f ? NAN : (float)softgpu_bits<half>((unsigned short)((__x & 0x7f) << kShift)) * kScale;
    return __x & 0x80 ? -size : size;
  }
};
using __nv_fp8_e4m3 = softgpu_fp8<3>;
using __nv_fp8_e5m2 = softgpu_fp8<2>;
struct __nv_fp8_e8m0 {  // a power of two
  unsigned char __x;
  operator float() const { return __x == 0xff ? NAN : ldexpf(1, __x - 127); }
};
using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned;

template <class F>
struct alignas(2) softgpu_fp8x2 {
  unsigned short __x;
  softgpu_fp8x2() = default;
  template <class T>
  explicit softgpu_fp8x2(const T& pair) : __x(F(pair.x).__x | F(pair.y).__x << 8) {}
  float at(int i) const {
    F one;
    one.__x = __x >> 8 * i;
    return (float)one;
  }
  explicit operator float2() const { return {at(0), at(1)}; }
  explicit operator half2() const { return {(half)at(0), (half)at(1)}; }
  explicit operator nv_bfloat162() const { return {(nv_bfloat16)at(0), (nv_bfloat16)at(1)}; }
};
template <class F>
struct alignas(4) softgpu_fp8x4 {
  unsigned __x;
  softgpu_fp8x4() = default;
  explicit softgpu_fp8x4(const float4& all) : __x(F(all.x).__x | F(all.y).__x << 8 | F(all.z).__x << 16 | (unsigned)F(all.w).__x << 24) {}
  float at(int i) const {
    F one;
    one.__x = __x >> 8 * i;
    return (float)one;
  }
  explicit operator float4() const { return {at(0), at(1), at(2), at(3)}; }
};
using __nv_fp8x2_e4m3 = softgpu_fp8x2<__nv_fp8_e4m3>;
using __nv_fp8x4_e4m3 = softgpu_fp8x4<__nv_fp8_e4m3>;
using __nv_fp8x2_e5m2 = softgpu_fp8x2<__nv_fp8_e5m2>;
using __nv_fp8x4_e5m2 = softgpu_fp8x4<__nv_fp8_e5m2>;
struct __nv_fp8x2_e8m0 {
  unsigned short __x;
};
struct __nv_fp8x4_e8m0 {
  unsigned __x;
};
