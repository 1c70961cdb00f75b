/* The fast cores of machines whose cores differ, as Linux and Android tell them apart: `runtime/system/fast_cores.py` does the same, and says by
   what. Elsewhere, and where nothing tells cores apart, all are alike. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#if defined(__linux__)
enum { MAX_CORES = CPU_SETSIZE, ALIKE_PERCENT = 80, TEXT_BYTES = 4096 };

typedef struct {
  int cores[MAX_CORES], speeds[MAX_CORES], count;
} core_table;

/* What a file says, without its end of line; "" where there is none. */
static char *read_text(const char *root, const char *name, char text[TEXT_BYTES]) {
  char path[TEXT_BYTES];
  size_t length = 0;
  FILE *file = snprintf(path, sizeof path, "%s/sys/devices/%s", root, name) < (int)sizeof path ? fopen(path, "r") : NULL;
  if (file) {
    length = fread(text, 1, TEXT_BYTES - 1, file);
    fclose(file);
  }
  text[length] = 0;
  text[strcspn(text, "\n")] = 0;
  return text;
}

static int read_numbers(const char *root, const char *name, core_table *table) {
  char path[128], text[TEXT_BYTES], *end;
  for (int i = 0; i < table->count; ++i) {
    snprintf(path, sizeof path, "system/cpu/cpu%d/%s", table->cores[i], name);
    long number = strtol(read_text(root, path, text), &end, 10);
    if (end == text || *end || number < 0) return 0;
    table->speeds[i] = (int)number;
  }
  return 1;
}

/* Of a list of the kernel's such as 0-3,8. */
static int is_listed(const char *list, int core) {
  while (*list) {
    char *end;
    long first = strtol(list, &end, 10), last = first;
    if (end == list) return 0;
    if (*end == '-') last = strtol(end + 1, &end, 10);
    if (core >= first && core <= last) return 1;
    list = *end == ',' ? end + 1 : "";
  }
  return 0;
}

static int compare(const void *left, const void *right) { return *(const int *)right - *(const int *)left; }

/* Whether the speeds tell cores apart; then in `sorted` they are, the fastest first. */
static int differ(const core_table *table, int sorted[MAX_CORES]) {
  memcpy(sorted, table->speeds, sizeof table->speeds);
  qsort(sorted, (size_t)table->count, sizeof *sorted, compare);
  return table->count > 0 && (int64_t)sorted[table->count - 1] * 100 < (int64_t)sorted[0] * ALIKE_PERCENT;
}

static int find_speeds(const char *root, core_table *table, int sorted[MAX_CORES]) {
  char list[TEXT_BYTES];
  if (read_numbers(root, "cpu_capacity", table) && differ(table, sorted)) return 1;
  read_text(root, "cpu_core/cpus", list);
  for (int i = 0; i < table->count; ++i) table->speeds[i] = 1 + is_listed(list, table->cores[i]);
  return differ(table, sorted) || (read_numbers(root, "cpufreq/cpuinfo_max_freq", table) && differ(table, sorted));
}

int32_t choose_cores(const char *root, int32_t wanted, int32_t *cores, int32_t *num_cores) {
  core_table *table = calloc(1, sizeof *table);
  int *sorted = calloc(MAX_CORES, sizeof *sorted), num_fast = 0;
  cpu_set_t allowed;
  *num_cores = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) CPU_ZERO(&allowed);
  for (int core = 0; table && core < MAX_CORES; ++core)
    if (CPU_ISSET(core, &allowed)) table->cores[table->count++] = core;
  if (table && sorted && find_speeds(root, table, sorted)) {
    int lowest = sorted[table->count - 1];
    while (num_fast < table->count && (int64_t)sorted[num_fast] * 2 >= (int64_t)sorted[0] + lowest) ++num_fast;
    wanted = wanted > 0 ? wanted : num_fast;
    int ranked = wanted > num_fast ? wanted : num_fast, least = sorted[(ranked < table->count ? ranked : table->count) - 1];
    for (int i = 0; i < table->count && least > lowest; ++i)
      if (table->speeds[i] >= least) cores[(*num_cores)++] = table->cores[i];
  }
  free(table);
  free(sorted);
  return wanted > 0 ? wanted : count_cores();
}
#else
int32_t choose_cores(const char *root, int32_t wanted, int32_t *cores, int32_t *num_cores) {
  (void)root, (void)cores;
  *num_cores = 0;
  return wanted > 0 ? wanted : count_cores();
}
#endif
