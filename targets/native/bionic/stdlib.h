/* Bionic's, as far as libraries use it. */
#pragma once
#include <stddef.h>
void *calloc(size_t count, size_t size);
void free(void *memory);
void *malloc(size_t size);

#if defined(__aarch64__)
/* ziglang's compiler calls this for an addition that other threads see whole; it stands in a library of compilers that Android has not. */
__attribute__((weak, visibility("hidden"))) unsigned __aarch64_ldadd4_acq_rel(unsigned value, unsigned *at) {
  unsigned before, after, failed;
  __asm__ volatile("1: ldaxr %w0, [%3]\n add %w1, %w0, %w4\n stlxr %w2, %w1, [%3]\n cbnz %w2, 1b"
                   : "=&r"(before), "=&r"(after), "=&r"(failed)
                   : "r"(at), "r"(value)
                   : "memory");
  return before;
}
#endif
