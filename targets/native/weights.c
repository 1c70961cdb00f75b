// Functions on weights that run where a model is compiled. `weights.py` beside this file says what each does and takes.

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PANEL = 32, HALF = 16, SLICE = 32, QUADS = 8, LANES = 16, MAX_GROUP = 1024 };

// ---- blocks of files -> codes, one a byte ----

void unpack_nibbles(const uint8_t *blocks, int64_t num_blocks, int64_t block_bytes, int64_t start, uint8_t *codes) {
    for (int64_t b = 0; b < num_blocks; b++, codes += 32) {
        const uint8_t *bytes = blocks + b * block_bytes + start;
        for (int i = 0; i < 16; i++) codes[i] = bytes[i] & 15;
        for (int i = 0; i < 16; i++) codes[16 + i] = bytes[i] >> 4;
    }
}

// ---- codes -> panels ----

static void pack_plane(const uint32_t quads[QUADS][PANEL], int bits, int low, uint32_t *out) {
    const int per_byte = 8 / bits;
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
    for (int vector = 0; vector < bits; vector++, out += PANEL) {
        for (int column = 0; column < PANEL; column++) out[column] = quads[vector * per_byte][column] >> low & mask;
        for (int at = 1; at < per_byte; at++)
            for (int column = 0; column < PANEL; column++) out[column] |= (quads[vector * per_byte + at][column] >> low & mask) << bits * at;
    }
}

// `order` has the row of each column, or -1 where a panel has none.
void pack_codes(const uint8_t *codes, const int64_t *order, int64_t panels, int64_t width, int64_t bits, int64_t block_slices,
                int64_t block_bytes, int64_t step, uint8_t *out) {
    const int64_t num_slices = width / SLICE, slice_bytes = PANEL * SLICE * bits / 8;
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t slice = 0; slice < num_slices; slice++) {
            uint32_t quads[QUADS][PANEL] = {{0}}, packed[QUADS * PANEL];
            for (int column = 0; column < PANEL; column++) {
                uint32_t row[QUADS] = {0};
                int64_t from = order[panel * PANEL + column];
                if (from >= 0) memcpy(row, codes + from * width + slice * SLICE, SLICE);
                for (int quad = 0; quad < QUADS; quad++) quads[quad][column] = row[quad];
            }
            int low = 0;
            uint32_t *next = packed;
            for (int size = 8; size; size /= 2)
                if (bits & size) {
                    pack_plane(quads, size, low, next);
                    low += size, next += size * PANEL;
                }
            int64_t block = slice / block_slices, place = slice % block_slices;
            memcpy(out + (panel * (num_slices / block_slices) + block) * block_bytes + place * step, packed, slice_bytes);
        }
}

#define PACK_FACTORS(TYPE)                                                                                                          \
    static void pack_##TYPE(const TYPE *rows, const int64_t *order, int64_t panels, int64_t blocks, int64_t parts, int64_t together,    \
                            int64_t step, int64_t block_bytes, uint8_t *out) {                                                      \
        for (int64_t panel = 0; panel < panels; panel++)                                                                            \
            for (int64_t block = 0; block < blocks; block++)                                                                        \
                for (int64_t part = 0; part < parts; part++) {                                                                      \
                    TYPE found[PANEL] = {0};                                                                                        \
                    for (int column = 0; column < PANEL; column++)                                                                  \
                        if (order[panel * PANEL + column] >= 0)                                                                     \
                            found[column] = rows[(order[panel * PANEL + column] * blocks + block) * parts + part];                  \
                    uint8_t *to = out + (panel * blocks + block) * block_bytes + part / together * step;                            \
                    memcpy(to + part % together * sizeof found, found, sizeof found);                                               \
                }                                                                                                                   \
    }
PACK_FACTORS(uint8_t)
PACK_FACTORS(uint16_t)
PACK_FACTORS(uint32_t)

void pack_factors(const void *rows, const int64_t *order, int64_t item, int64_t panels, int64_t blocks, int64_t parts, int64_t together,
                  int64_t step, int64_t block_bytes, uint8_t *out) {
    if (item == 1) pack_uint8_t(rows, order, panels, blocks, parts, together, step, block_bytes, out);
    if (item == 2) pack_uint16_t(rows, order, panels, blocks, parts, together, step, block_bytes, out);
    if (item == 4) pack_uint32_t(rows, order, panels, blocks, parts, together, step, block_bytes, out);
}

// ---- float32 -> codes of 4 bits ----

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// The nearest float16, of two the even one, as float32; at most the largest float16.
static float in_half(float value) {
    const float largest = 65504, magnitude = fabsf(value);
    if (magnitude >= largest) return copysignf(largest, value);
    if (magnitude < 0x1p-14f) {  // multiples of 2^-24: adding 2^-1 leaves no smaller ones
        volatile float shifted = magnitude + 0x1p-1f;
        return copysignf(shifted - 0x1p-1f, value);
    }
    uint32_t bits = bits_of(value);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    float rounded;
    memcpy(&rounded, &bits, 4);
    return fabsf(rounded) > largest ? copysignf(largest, value) : rounded;
}

// Sixteen groups at a time, one a lane: nothing is summed across lanes, and sums have one order on every machine.
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Masks __attribute__((vector_size(4 * LANES)));

static inline Lanes all(float value) { return value - (Lanes){0}; }

static inline Lanes choose(Masks where, Lanes one, Lanes other) { return (Lanes)(((Masks)one & where) | ((Masks)other & ~where)); }

static inline Lanes magnitude(Lanes value) { return (Lanes)((Masks)value & 0x7fffffff); }

static inline Lanes inverse_of(Lanes scales) { return choose(scales != all(0), 1 / scales, all(0)); }

// The codes from -8 to 7 that are nearest, of two the even one, as numbers.
static inline Lanes code_of(Lanes value, Lanes inverse) {
    const Lanes whole = all(12582912);  // 1.5 * 2^23: what is added to it is rounded to integers
    Lanes code = value * inverse;
    code = choose(code < all(-8), all(-8), code);
    code = choose(code > all(7), all(7), code);
    return (code + whole) - whole;
}

// The scales that fit the codes by some scales best, and by how much they lower the squared errors.
static Lanes improve(const Lanes *values, const Lanes *importance, int64_t size, Lanes scales, Lanes *gains) {
    const Lanes inverse = inverse_of(scales);
    Lanes products = {0}, squares = {0};
    for (int64_t i = 0; i < size; i++) {
        Lanes code = code_of(values[i], inverse), weighted = importance[i] * code;
        products += values[i] * weighted;
        squares += code * weighted;
    }
    scales = choose(squares != all(0), products / squares, all(0));
    *gains = products * scales;
    return scales;
}

static void weigh(const Lanes *values, int64_t size, int64_t weighted, Lanes *importance) {
    Lanes sum = {0};
    for (int64_t i = 0; i < size; i++) sum += values[i] * values[i];
    for (int64_t i = 0; i < size; i++) importance[i] = weighted ? values[i] * values[i] + sum / (float)size : all(1);
}

void encode_w4(const float *weights, int64_t num_groups, int64_t size, const float *divisors, int64_t num_divisors, int64_t weighted,
               uint8_t *out, float *scales) {
    Lanes values[MAX_GROUP], importance[MAX_GROUP];
    for (int64_t first = 0; first < num_groups; first += LANES, weights += LANES * size, out += LANES * size, scales += LANES) {
        const int count = num_groups - first < LANES ? num_groups - first : LANES;
        Lanes largest = {0}, best = {0}, most = {0}, gains;
        for (int64_t i = 0; i < size; i++)
            for (int lane = 0; lane < LANES; lane++) values[i][lane] = lane < count ? weights[lane * size + i] : 0;
        for (int64_t i = 0; i < size; i++) largest = choose(magnitude(values[i]) > magnitude(largest), values[i], largest);
        weigh(values, size, weighted, importance);
        for (int64_t i = 0; i < num_divisors; i++) {
            Lanes tried = improve(values, importance, size, largest / divisors[i], &gains);
            best = choose(gains > most, tried, best);
            most = choose(gains > most, gains, most);
        }
        best = improve(values, importance, size, best, &gains);
        for (int lane = 0; lane < LANES; lane++) best[lane] = in_half(best[lane]);
        const Lanes inverse = inverse_of(best);
        for (int64_t i = 0; i < size; i++) {
            Masks codes = __builtin_convertvector(code_of(values[i], inverse), Masks) + 8;
            for (int lane = 0; lane < count; lane++) out[lane * size + i] = codes[lane];
        }
        for (int lane = 0; lane < count; lane++) scales[lane] = best[lane];
    }
}
