/* Codes of tables (`formats/tables.py`) as numbers, as `matrix.cuh` has them of codes that are numbers. */

/* Four E4M3 in a word as the halves of two: with one more bit of exponent the bits are those of a half that is 256 times smaller. */
DEVICE half2 halves_of_e4m3(unsigned codes, int pair) {
  const unsigned high = __byte_perm(codes, 0, pair ? 0x3424 : 0x1404);
  return __hmul2(halves((high & 0x7f007f00u) >> 1 | (high & 0x80008000u)), halves(0x5c005c00u)); /* 256 */
}
template <int half>
DEVICE void numbers_of_e4m3(int *numbers, unsigned codes, unsigned scales) {
#pragma unroll
  for (int i = 0; i < 2; ++i) numbers[2 * i] = number<half, false>(halves_of_e4m3(codes, i), scales, 0);
}


/* What `matrix.cuh` has of codes: the numbers in a word, and a copy of 16 as halves. */
DEVICE void floats_of_float8_e4m3fn(float *to, int word) {
  floats_of_float16(to, bits_of(halves_of_e4m3(word, 0))), floats_of_float16(to + 2, bits_of(halves_of_e4m3(word, 1)));
}
DEVICE void copy_e4m3(void *to, const void *from) {
  const int4 found = *(const int4 *)from;
  const int words[4] = {found.x, found.y, found.z, found.w};
  int pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) pairs[i] = bits_of(halves_of_e4m3(words[i / 2], i % 2));
  ((int4 *)to)[0] = make_int4(pairs[0], pairs[1], pairs[2], pairs[3]);
  ((int4 *)to)[1] = make_int4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

/* 8 codes of 4 bits: pair i lies at bits 4 i and 4 i + 16. E2M1's bits are those of a half that is 16384 times smaller. */
template <int half>
DEVICE void numbers_of_e2m1(int *numbers, unsigned codes, unsigned scales) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned some = codes >> 4 * i, bits = some << 9 & 0x0e000e00u | some << 12 & 0x80008000u;
    numbers[2 * i] = number<half, false>(__hmul2(halves(bits), halves(0x74007400u)), scales, 0); /* 16384 */
  }
}

/* Bytes of a table of 16, those of the four codes in the lower half of a word: by three bits of a code from either half of the table, of which
   the fourth takes one. */
DEVICE unsigned bytes_of(unsigned codes, unsigned a, unsigned b, unsigned c, unsigned d) {
  const unsigned place = codes & 0x7777u;
  return __byte_perm(__byte_perm(a, b, place), __byte_perm(c, d, place), (codes & 0x8888u) >> 1 | 0x3210u);
}

/* IQ4_NL's are whole numbers, 128 more in the table than in truth; 1024 with one in its last bits is 1024 more. */
template <int half>
DEVICE void numbers_of_iq4nl(int *numbers, unsigned codes, unsigned scales) {
  const unsigned a = 0x3f2d1801u, b = 0x766a5d4fu, c = 0xa6998d81u, d = 0xf1d9c5b5u;
  const unsigned low = bytes_of(codes, a, b, c, d), high = bytes_of(codes >> 16, a, b, c, d);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned both = __byte_perm(low, high, i * 0x101 + 0x400) & 0x00ff00ffu | 0x64006400u;
    numbers[2 * i] = number<half, false>(__hsub2(halves(both), halves(0x64806480u)), scales, 0);
  }
}

/* NF4's, rounded to halves: their lower and upper bytes stand in tables of their own. */
template <int half>
DEVICE void numbers_of_nf4(int *numbers, unsigned codes, unsigned scales) {
  unsigned lower[2], upper[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    lower[i] = bytes_of(codes >> 16 * i, 0x52339200u, 0x00d4ea8du, 0x68e02618u, 0x00c9800du);
    upper[i] = bytes_of(codes >> 16 * i, 0xb6b8b9bcu, 0x00adb1b4u, 0x3533312du, 0x3c393837u);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned place = i | (i + 4) << 4, low = __byte_perm(lower[0], upper[0], place), high = __byte_perm(lower[1], upper[1], place);
    numbers[2 * i] = number<half, false>(halves(__byte_perm(low, high, 0x5410)), scales, 0);
  }
}
