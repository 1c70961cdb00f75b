/* How fast the same bytes are read again and again: each thread adds up its own part of them; the best of sixteen passes, in GB/s.
   Usage: read_bandwidth THREADS [MEGABYTES], 512 unless given: more than caches hold, so that it is memory's speed.
   Of memory, four runs of addresses at once keep more reads in flight than one. Of the last cache, one run that asks for what comes 8 KB
   later is faster: what the hardware foresees ends with a page. Passes go both ways in turns. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PASSES = 16, RUNS = 4, LANES = 8, AHEAD = 8192 };
static uint64_t *words;
static pthread_barrier_t barrier;

typedef struct {
    size_t begin, end;
    uint64_t sum;
    double starts[PASSES], ends[PASSES];
} Part;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void add_runs(const Part *part, uint64_t *lanes) {
    size_t run = (part->end - part->begin) / RUNS;
    for (size_t i = part->begin; i + LANES <= part->begin + run; i += LANES)
        for (int r = 0; r < RUNS; r++)
            for (int lane = 0; lane < LANES; lane++) lanes[r * LANES + lane] += words[i + r * run + lane];
}

static void add_asking_ahead(const Part *part, uint64_t *lanes) {
    for (size_t i = part->begin; i + RUNS * LANES <= part->end; i += RUNS * LANES)
        for (int r = 0; r < RUNS; r++) {
            __builtin_prefetch((const char *)(words + i + r * LANES) + AHEAD, 0, 2);
            for (int lane = 0; lane < LANES; lane++) lanes[r * LANES + lane] += words[i + r * LANES + lane];
        }
}

static void *add_up(void *argument) {
    Part *part = argument;
    memset(words + part->begin, 1, (part->end - part->begin) * sizeof *words); /* first touched where it will be read */
    for (int pass = 0; pass < PASSES; pass++) {
        uint64_t lanes[RUNS * LANES] = {0};
        pthread_barrier_wait(&barrier);
        part->starts[pass] = seconds();
        (pass % 2 ? add_asking_ahead : add_runs)(part, lanes);
        for (int lane = 0; lane < RUNS * LANES; lane++) part->sum += lanes[lane];
        part->ends[pass] = seconds();
    }
    return NULL;
}

int main(int count, char **arguments) {
    int num_threads = count > 1 ? atoi(arguments[1]) : 1;
    size_t num_bytes = (size_t)(count > 2 ? atoi(arguments[2]) : 512) << 20, num_words = num_bytes / sizeof *words, share = num_words / num_threads;
    pthread_t *threads = calloc(num_threads, sizeof *threads);
    Part *parts = calloc(num_threads, sizeof *parts);
    words = aligned_alloc(2 << 20, num_bytes);
    if (!threads || !parts || !words) return 1;
#ifdef MADV_HUGEPAGE
    madvise(words, num_bytes, MADV_HUGEPAGE);
#endif
    pthread_barrier_init(&barrier, NULL, num_threads);
    for (int t = 0; t < num_threads; t++) {
        parts[t].begin = share * t;
        parts[t].end = share * (t + 1);
        if (pthread_create(&threads[t], NULL, add_up, &parts[t])) return 1;
    }
    uint64_t sum = 0;
    for (int t = 0; t < num_threads; t++) {
        pthread_join(threads[t], NULL);
        sum += parts[t].sum;
    }
    double best = 1e9;
    for (int pass = 0; pass < PASSES; pass++) {
        double start = parts[0].starts[pass], end = parts[0].ends[pass];
        for (int t = 1; t < num_threads; t++) {
            if (parts[t].starts[pass] < start) start = parts[t].starts[pass];
            if (parts[t].ends[pass] > end) end = parts[t].ends[pass];
        }
        if (end - start < best) best = end - start;
    }
    fprintf(stderr, "%llu\n", (unsigned long long)sum); /* so that the compiler keeps the reads */
    printf("%.2f\n", num_bytes / best / 1e9);
    return 0;
}
