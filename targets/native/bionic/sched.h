/* Bionic's, as far as libraries use it. */
#pragma once
#include <stddef.h>
typedef struct {
  unsigned long bits[1024 / (8 * sizeof(unsigned long))];
} cpu_set_t;
int sched_getaffinity(int thread, size_t size, cpu_set_t *set);
int sched_setaffinity(int thread, size_t size, const cpu_set_t *set);
int sched_yield(void);
