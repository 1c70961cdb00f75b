/* Scratch memory of threads, which kernels take and give back in the order of a stack, or nearly: each thread keeps a few blocks, which grow. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

enum { NUM_BLOCKS = 16, ALIGNMENT = 64 };
typedef struct {
  void *memory;
  uint64_t size;
  int taken;
} Block;
static pthread_key_t blocks_key;

static void *allocate(uint64_t size) {
  char *whole = malloc(size + ALIGNMENT + sizeof(void *));
  if (!whole) return NULL;
  void **memory = (void **)(((uintptr_t)whole + sizeof(void *) + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
  memory[-1] = whole;
  return memory;
}

static void deallocate(void *memory) {
  if (memory) free(((void **)memory)[-1]);
}

static void free_blocks(void *thread_blocks) {
  for (int i = 0; i < NUM_BLOCKS; ++i) deallocate(((Block *)thread_blocks)[i].memory);
  free(thread_blocks);
}

static Block *own_blocks(void) {
  Block *blocks = pthread_getspecific(blocks_key);
  if (blocks) return blocks;
  blocks = calloc(NUM_BLOCKS, sizeof *blocks);
  if (!blocks || pthread_setspecific(blocks_key, blocks) == 0) return blocks;
  free(blocks);
  return NULL;
}

/* The smallest free block that is large enough, else the largest one. */
static Block *choose_block(uint64_t size) {
  Block *best = NULL;
  for (Block *block = own_blocks(), *end = block ? block + NUM_BLOCKS : NULL; block != end; ++block) {
    if (block->taken) continue;
    if (!best || (best->size < size ? block->size > best->size : block->size >= size && block->size < best->size)) best = block;
  }
  return best;
}

void *cupola_take(int device_type, int device_id, uint64_t size, int type_code, int type_bits) {
  (void)device_type, (void)device_id, (void)type_code, (void)type_bits;
  size += !size; /* null means failure, of no bytes too */
  Block *block = choose_block(size);
  if (!block) return NULL;
  if (block->size < size) {
    deallocate(block->memory);
    block->memory = allocate(size);
    block->size = block->memory ? size : 0;
  }
  block->taken = block->memory != NULL;
  return block->memory;
}

int cupola_give(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  Block *blocks = pthread_getspecific(blocks_key);
  for (int i = 0; blocks && i < NUM_BLOCKS; ++i)
    if (blocks[i].taken && blocks[i].memory == memory) return blocks[i].taken = 0;
  return -1;
}

__attribute__((constructor)) static void initialize(void) { pthread_key_create(&blocks_key, free_blocks); }
