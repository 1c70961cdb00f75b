/* Seconds in which threads read a buffer once, each its own part of it, in one of two ways: in four runs of addresses at once, which keep more
   reads in flight than one; or in one run that asks for what comes 16 KB later, since what the hardware foresees ends with a page. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <time.h>

enum { MOST_THREADS = 256, RUNS = 4, LANES = 8, AHEAD = 16384 };

typedef struct {
    const uint64_t *words;
    size_t count;
    int way;
    uint64_t sum;
} Part;

static void *add_up(void *argument) {
    Part *part = argument;
    uint64_t lanes[RUNS * LANES] = {0};
    size_t run = part->way ? LANES : part->count / RUNS, step = part->way ? RUNS * LANES : LANES;
    size_t end = part->way ? part->count / step * step : run / step * step;
    for (size_t i = 0; i < end; i += step)
        for (int r = 0; r < RUNS; r++) {
            if (part->way) __builtin_prefetch((const char *)(part->words + i + r * run) + AHEAD, 0, 2);
            for (int lane = 0; lane < LANES; lane++) lanes[r * LANES + lane] += part->words[i + r * run + lane];
        }
    for (int lane = 0; lane < RUNS * LANES; lane++) part->sum += lanes[lane];
    return NULL;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

volatile uint64_t read_sum; /* so that the compiler keeps the reads */

double read_seconds(const uint64_t *words, size_t num_bytes, int num_threads, int way) {
    pthread_t threads[MOST_THREADS];
    Part parts[MOST_THREADS];
    size_t count = num_bytes / sizeof *words / num_threads;
    double start = now();
    for (int t = 0; t < num_threads; t++) {
        parts[t] = (Part){words + t * count, count, way, 0};
        pthread_create(&threads[t], NULL, add_up, &parts[t]);
    }
    for (int t = 0; t < num_threads; t++) {
        pthread_join(threads[t], NULL);
        read_sum += parts[t].sum;
    }
    return now() - start;
}
