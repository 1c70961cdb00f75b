/* What kernels for CUDA and for AMD's GPUs call: numbers of 16 bits in words, and codes made numbers. */
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
