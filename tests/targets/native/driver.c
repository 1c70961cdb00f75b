/* Runs a library's C with a kernel in C too, so that sanitizers see all of it: every access in a region, and what orders it. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WIDTH = 257, ROUNDS = 30, FAILING = 99 };

extern const int32_t cupola_abi;
int32_t cupola_num_threads(void);
int32_t cupola_set_threads(int32_t count);
void cupola_set_cores(const int32_t *cores, int32_t count);
void cupola_set_power_saver(int32_t is_on);
int64_t cupola_workspace_bytes(const int64_t *dims);
int32_t cupola_run(int64_t times, const int64_t *dims, void *const *inputs, void *workspace, int64_t *clock);
int32_t cupola_run_calls(int64_t first, int64_t last, const int64_t *dims, void *const *inputs, void *workspace);
int32_t cupola_kernel_stage(void *x, void *out, int64_t n);

/* As kernels' objects have them. */
typedef struct {
  void *sync;
  int32_t num_tasks;
} Env;
typedef int (*Task)(int, Env *, void *);
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void *, int);
__attribute__((weak)) int (*__TVMBackendParallelBarrier)(int, Env *);
__attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);

typedef struct {
  const int64_t *x;
  int64_t *sums, *twice, *out, n;
} Stage;

/* out[i] = x[i] + 2 * (x[i] + x[n - 1 - i]), in three loops over what the one before wrote, elsewhere. */
static int part(int index, Env *env, void *data) {
  const Stage *s = data;
  if (s->n == FAILING && index == env->num_tasks - 1) return -1; /* and comes to no barrier */
  int64_t first = s->n * index / env->num_tasks, last = s->n * (index + 1) / env->num_tasks;
  int64_t *own = __TVMBackendAllocWorkspace(1, 0, 8 * (last - first), 0, 64);
  if (!own) return -1;
  for (int64_t i = first; i < last; ++i) own[i - first] = s->x[i] + s->x[s->n - 1 - i];
  for (int64_t i = first; i < last; ++i) s->sums[i] = own[i - first];
  if (__TVMBackendFreeWorkspace(1, 0, own)) return -1;
  if (__TVMBackendParallelBarrier(index, env)) return -1;
  for (int64_t i = index; i < s->n; i += env->num_tasks) s->twice[i] = s->sums[s->n - 1 - i] + s->sums[i];
  if (__TVMBackendParallelBarrier(index, env)) return -1;
  for (int64_t i = first; i < last; ++i) s->out[i] = s->x[i] + s->twice[s->n - 1 - i];
  return 0;
}

int32_t cupola_code_stage(void *x, void *out, int64_t n) {
  int64_t *sums = __TVMBackendAllocWorkspace(1, 0, 8 * n, 0, 64), *twice = __TVMBackendAllocWorkspace(1, 0, 8 * n, 0, 64);
  if (!sums || !twice) return -1;
  Stage stage = {x, sums, twice, out, n};
  int code = __TVMBackendParallelLaunch(part, &stage, 0);
  return code | __TVMBackendFreeWorkspace(1, 0, twice) | __TVMBackendFreeWorkspace(1, 0, sums);
}

static void check(int good, const char *what) {
  if (good) return;
  fprintf(stderr, "wrong: %s\n", what);
  exit(1);
}

static void stages(int64_t *x, int64_t n, int count) {
  int64_t *next = malloc(8 * n);
  for (; count--; memcpy(x, next, 8 * n))
    for (int64_t i = 0; i < n; ++i) next[i] = x[i] + 2 * (x[i] + x[n - 1 - i]);
  free(next);
}

/* Steps of a caller with memory of its own. */
static void *steps(void *seed) {
  int64_t n = WIDTH + (intptr_t)seed, *x = malloc(8 * n), *out = malloc(8 * n), *right = malloc(8 * n), clock[CALLS + 1];
  for (int64_t i = 0; i < n; ++i) right[i] = x[i] = (i * 7 + (intptr_t)seed) % 5 - 2;
  stages(right, n, CALLS);
  void *inputs[] = {x, out}, *workspace = aligned_alloc(64, cupola_workspace_bytes(&n));
  for (int i = 0; i < ROUNDS; ++i) {
    memset(out, 0, 8 * n);
    if (i % 3 == 0)
      check(!cupola_run(2, &n, inputs, workspace, NULL), "run");
    else if (i % 3 == 1)
      check(!cupola_run(1, &n, inputs, workspace, clock) && clock[0] <= clock[CALLS], "run with a clock");
    else
      check(!cupola_run_calls(0, 2, &n, inputs, workspace) && !cupola_run_calls(2, CALLS, &n, inputs, workspace), "run_calls");
    check(!memcmp(out, right, 8 * n), "result");
  }
  memcpy(right, x, 8 * n);
  stages(right, n, 1);
  check(!cupola_kernel_stage(x, out, n) && !memcmp(out, right, 8 * n), "kernel");
  free(x), free(out), free(right), free(workspace);
  return NULL;
}

/* The first call fails in one of the threads, and what comes next doesn't. */
static void failures(void) {
  int64_t n = FAILING, x[FAILING] = {0}, out[FAILING] = {1};
  size_t size = cupola_workspace_bytes(&n);
  void *inputs[] = {x, out}, *workspace = memset(aligned_alloc(64, size), 0, size); /* which a call reads that none wrote for */
  for (int i = 0; i < 3; ++i) {
    check(cupola_run(2, &n, inputs, workspace, NULL) == 1 && cupola_run_calls(1, 3, &n, inputs, workspace) == 2 && out[0] == 1, "failure");
    steps(NULL);
  }
  free(workspace);
}

static void callers(void) {
  pthread_t threads[3];
  for (intptr_t i = 0; i < 3; ++i) check(!pthread_create(&threads[i], NULL, steps, (void *)(i * 50)), "pthread_create");
  for (int32_t i = 0, core = 0; i < ROUNDS; ++i) {
    check(cupola_set_threads(1 + i % 4) == 1 + i % 4, "set_threads");
    cupola_set_power_saver(i % 3 == 0);
    if (i % 5 == 0) cupola_set_cores(&core, i % 2);
  }
  for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
}

static void forks(int depth) {
  pthread_t thread;
  pthread_create(&thread, NULL, steps, NULL);
  for (int i = 0; i < 3; ++i) {
    pid_t child = fork();
    if (child == 0) {
      steps((void *)3);
      check(cupola_set_threads(4) == 4, "set_threads of a child");
      steps((void *)4);
      if (depth && i == 0) forks(depth - 1);
      _exit(0);
    }
    int status = -1;
    check(waitpid(child, &status, 0) == child && status == 0, "child");
  }
  pthread_join(thread, NULL);
}

int main(void) {
  check(cupola_abi == 1, "abi");
  steps(NULL);
  const int counts[] = {1, 2, 3, 5, 2, 8, 1, 1, 4};
  for (size_t i = 0; i < sizeof counts / sizeof *counts; ++i) {
    check(cupola_set_threads(counts[i]) == counts[i] && cupola_num_threads() <= counts[i], "set_threads");
    steps((void *)(intptr_t)i);
    failures();
  }
  check(cupola_set_threads(0) == 1 && cupola_set_threads(1000) == 256, "extremes");
  cupola_set_threads(3);
  usleep(20000); /* threads fall asleep */
  steps(NULL);
  callers();
  for (int saves_power = 0; saves_power < 2; ++saves_power) {
    cupola_set_power_saver(saves_power);
    cupola_set_threads(3);
    forks(1 - saves_power);
    steps(NULL);
    failures();
  }
  puts("done");
  return 0;
}
