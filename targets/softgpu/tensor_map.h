/* What the 128 bytes of a CUtensorMap hold here: `driver.c` writes them, `hopper.h` copies by them. */
#pragma once
#include <stdint.h>

enum { TENSOR_MAP_RANK = 5 };
typedef struct {
  char *base;
  uint64_t strides[TENSOR_MAP_RANK]; /* bytes; of the innermost dimension an element's */
  uint32_t sizes[TENSOR_MAP_RANK];
  uint16_t box[TENSOR_MAP_RANK], swizzle, rank; /* swizzle: bytes of a row whose chunks are exchanged, or 0 */
} TensorMap;
