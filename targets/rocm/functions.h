// Functions of <math.h> where there is no library for the device. LLVM has code for those that become intrinsics, within an ulp or exact; the
// others are polynomials (minimax fits over the ranges that are named), within 3 ulp.
#pragma once

namespace rocm {
static inline float polynomial(float) { return 0; }
template <class... Rest>
static inline float polynomial(float x, float first, Rest... rest) {  // first + x · (second + x · …)
  return __builtin_fmaf(x, polynomial(x, rest...), first);
}

struct Angle {
  float rest;    // in [-π/4, π/4]
  int quadrant;  // of which there are four
};
// x less a whole number of right angles, of which there may be 2^31: π/2 is subtracted in two parts, of 106 bits.
static inline Angle reduce(float x) {
  const double count = __builtin_rint(x * 0x1.45f306dc9c883p-1);
  return {(float)__builtin_fma(count, -0x1.1a62633145c07p-54, __builtin_fma(count, -0x1.921fb54442d18p+0, (double)x)), (int)count & 3};
}
static inline float sin_of(float x) {  // |x| ≤ π/4
  const float t = x * x;
  return __builtin_fmaf(x * t, polynomial(t, -0x1.555556p-3f, 0x1.111108p-7f, -0x1.a00f98p-13f, 0x1.6cd732p-19f), x);
}
static inline float cos_of(float x) {
  const float t = x * x;
  return __builtin_fmaf(t, polynomial(t, -0x1p-1f, 0x1.55553ep-5f, -0x1.6c0878p-10f, 0x1.993270p-16f), 1);
}
static inline float turned(Angle angle, int quadrants) {  // the cosine of the angle, so many quadrants further on
  const int quadrant = (angle.quadrant + quadrants) & 3;
  const float value = quadrant & 1 ? sin_of(angle.rest) : cos_of(angle.rest);
  return quadrant == 1 || quadrant == 2 ? -value : value;
}
}  // namespace rocm

static inline float expf(float x) { return __builtin_expf(x); }
static inline float exp2f(float x) { return __builtin_exp2f(x); }
static inline float logf(float x) { return __builtin_logf(x); }
static inline float log2f(float x) { return __builtin_log2f(x); }
static inline float log10f(float x) { return __builtin_log10f(x); }
static inline float sqrtf(float x) { return __builtin_sqrtf(x); }
static inline float fabsf(float x) { return __builtin_fabsf(x); }
static inline float floorf(float x) { return __builtin_floorf(x); }
static inline float ceilf(float x) { return __builtin_ceilf(x); }
static inline float truncf(float x) { return __builtin_truncf(x); }
static inline float roundf(float x) { return __builtin_roundf(x); }
static inline float nearbyintf(float x) { return __builtin_nearbyintf(x); }
static inline float fmaf(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
static inline float fminf(float x, float y) { return __builtin_fminf(x, y); }
static inline float fmaxf(float x, float y) { return __builtin_fmaxf(x, y); }

// TVM's functions of bfloat16 name these, which have no code: a kernel that calls one does not link.
float powf(float x, float y);
float tanf(float x);
float atanf(float x);

static inline float cosf(float x) { return rocm::turned(rocm::reduce(x), 0); }
static inline float sinf(float x) { return rocm::turned(rocm::reduce(x), 3); }

static inline float tanhf(float x) {
  const float size = __builtin_fabsf(x), t = x * x;
  if (size < 0.625f)
    return __builtin_fmaf(x * t, rocm::polynomial(t, -0x1.555554p-2f, 0x1.11106cp-3f, -0x1.b9ef7cp-5f, 0x1.6394d8p-6f, -0x1.0c2144p-7f, 0x1.197b72p-9f), x);
  return __builtin_copysignf(1 - 2 / (__builtin_expf(2 * size) + 1), x);
}

static inline float erf(float x) {
  const float size = __builtin_fminf(__builtin_fabsf(x), 4), t = x * x;
  if (size < 1)
    return x * rocm::polynomial(t, 0x1.20dd74p+0f, -0x1.81273ep-2f, 0x1.ce2d2p-4f, -0x1.b7fbb4p-6f, 0x1.5419f6p-8f, -0x1.a485ecp-11f, 0x1.4ae4dp-14f);
  const float exponent = rocm::polynomial(  // -log(1 - erf) in [1, 4], behind which erf is 1
      size, 0x1.72e5f2p-12f, 0x1.2085b2p+0f, 0x1.46c584p-1f, 0x1.a60a88p-4f, -0x1.65422cp-6f, 0x1.814cecp-9f, -0x1.852d66p-13f);
  return __builtin_copysignf(1 - __builtin_expf(-exponent), x) + (x != x ? x : 0);
}
static inline float erff(float x) { return erf(x); }
