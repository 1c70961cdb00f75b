/* The part of a compiled library that is not compiled from a model: a team of threads, and what kernels ask of a runtime.

   A step of the model is a few hundred parallel regions of some microseconds each. Its caller leads the team: it runs everything that is
   not parallel, and its part of what is. The other threads watch one line of memory, in which it says what comes next; in a line of its own
   each says that it is done. Between steps they watch for a while, then sleep. One step runs at a time; who calls meanwhile waits.

   Kernels call the functions below through pointers of TVM's (tvm/runtime/c_backend_api.h). A forked child has the caller's thread alone,
   and starts the others again with its first step. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* How a core says that it waits for another one, and how often it does before it lets other programs run: a few microseconds. */
#if defined(__x86_64__) || defined(_M_X64)
#define PAUSE() __builtin_ia32_pause()
enum { PATIENCE = 128 };
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
enum { PATIENCE = 4096 };
#else
#define PAUSE() ((void)0)
enum { PATIENCE = 4096 };
#endif

enum { MAX_THREADS = 256, STACK_BYTES = 8 << 20 };
static const int64_t WATCH_NANOSECONDS = 2000000; /* Waking a thread takes 50 microseconds, and it may wake on the caller's core. */

typedef struct {
  void *sync;
  int32_t num_tasks;
} Env; /* TVMParallelGroupEnv */
typedef int (*Task)(int index, Env *env, void *data);

/* The kinds of news; their numbers grow by one each time, in the bits above. Only a region is waited for, so only that is never missed. */
enum { REGION, STEP_BEGINS, STEP_ENDS, KINDS };

/* Lines of memory are written to by one thread each. */
typedef struct {
  _Alignas(64) _Atomic int64_t value;
  int code;
} Line;

static struct {
  _Alignas(64) _Atomic int64_t news;
  Task task;
  void *data;
  Env env;
} team = {.news = STEP_ENDS};
static Line done[MAX_THREADS], counters[MAX_THREADS];
static _Atomic int32_t num_failed; /* parts of the region; a thread whose part failed comes to no barrier any more */

static pthread_mutex_t step_lock = PTHREAD_MUTEX_INITIALIZER; /* held by who leads; what follows is its */
static int32_t num_wanted = 1, num_threads = 1;
static struct {
  pthread_t thread;
  int64_t seen;
} members[MAX_THREADS];

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static _Atomic int32_t num_sleeping;
static _Atomic int32_t num_staying = 1; /* threads from this index on leave the team */

static _Atomic pthread_t leader; /* 0 is nobody: a lock's owner, for the owner itself to see */

int64_t cupola_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int32_t cupola_num_threads(void) { return num_threads; }

/* Waiting */

static void wait_a_moment(int64_t count) {
  if (count < PATIENCE)
    PAUSE();
  else
    sched_yield();
}

static int64_t sleep_until_news(int64_t seen) {
  int64_t news;
  pthread_mutex_lock(&sleep_lock);
  atomic_fetch_add(&num_sleeping, 1);
  while ((news = atomic_load(&team.news)) == seen) pthread_cond_wait(&woken, &sleep_lock);
  atomic_fetch_sub(&num_sleeping, 1);
  pthread_mutex_unlock(&sleep_lock);
  return news;
}

static int64_t await_news(int64_t seen) {
  int64_t news, asleep_at = 0;
  for (int64_t count = 0; (news = atomic_load_explicit(&team.news, memory_order_acquire)) == seen; ++count) {
    wait_a_moment(count);
    if (seen % KINDS != STEP_ENDS || count < PATIENCE || count % 16) continue;
    if (asleep_at == 0)
      asleep_at = cupola_clock() + WATCH_NANOSECONDS;
    else if (cupola_clock() > asleep_at)
      return sleep_until_news(seen);
  }
  return news;
}

/* The team */

static int run_part(int index, Task task, void *data) {
  int code = task(index, &team.env, data);
  if (code) atomic_fetch_add(&num_failed, 1);
  return code;
}

static void *serve(void *argument) {
  int index = (int)(intptr_t)argument;
  int64_t news = members[index].seen;
  for (;;) {
    news = await_news(news);
    if (news % KINDS == REGION) {
      done[index].code = run_part(index, team.task, team.data);
      atomic_store_explicit(&done[index].value, news, memory_order_release);
    } else if (index >= atomic_load_explicit(&num_staying, memory_order_acquire)) {
      return NULL;
    }
  }
}

/* Tells what is no region, also to those who sleep: they go to sleep only when they have seen, after they were counted, that nothing is new. */
static void announce(int kind) {
  int64_t number = atomic_load_explicit(&team.news, memory_order_relaxed) / KINDS + 1;
  atomic_store(&team.news, number * KINDS + kind);
  if (kind == STEP_BEGINS && atomic_load(&num_sleeping) == 0) return;
  if (kind == STEP_ENDS && num_wanted >= num_threads) return; /* nobody has to leave */
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&woken);
  pthread_mutex_unlock(&sleep_lock);
}

static void forget_failures(void) {
  atomic_store(&num_failed, 0);
  for (int32_t i = 0; i < num_threads; ++i) atomic_store_explicit(&counters[i].value, 0, memory_order_relaxed);
}

static int run_region(Task task, void *data) {
  if (num_threads == 1) {
    Env alone = {counters, 1};
    return task(0, &alone, data);
  }
  int64_t region = (atomic_load_explicit(&team.news, memory_order_relaxed) / KINDS + 1) * KINDS + REGION;
  team.task = task;
  team.data = data;
  atomic_store_explicit(&team.news, region, memory_order_release);
  int code = run_part(0, task, data);
  for (int32_t i = 1; i < num_threads; ++i) {
    for (int64_t count = 0; atomic_load_explicit(&done[i].value, memory_order_acquire) != region; ++count) wait_a_moment(count);
    code |= done[i].code;
  }
  if (code) forget_failures();
  return code;
}

/* Signals are for the program's own threads, but for those that say that this thread is at fault. */
#if defined(_WIN32)
typedef int sigset_t; /* there are none */
#endif
static void block_signals(sigset_t *before) {
#if !defined(_WIN32)
  sigset_t blocked;
  sigfillset(&blocked);
  const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF};
  for (size_t i = 0; i < sizeof faults / sizeof *faults; ++i) sigdelset(&blocked, faults[i]);
  pthread_sigmask(SIG_BLOCK, &blocked, before);
#else
  (void)before;
#endif
}

static void restore_signals(const sigset_t *before) {
#if !defined(_WIN32)
  pthread_sigmask(SIG_SETMASK, before, NULL);
#else
  (void)before;
#endif
}

/* Starts as many threads as there should be, or as the system gives. */
static void start_threads(void) {
  sigset_t before;
  pthread_attr_t attributes;
  block_signals(&before);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  for (int32_t i = 0; i < num_wanted; ++i) atomic_store_explicit(&counters[i].value, 0, memory_order_relaxed);
  atomic_store(&num_staying, num_wanted);
  for (; num_threads < num_wanted; ++num_threads) {
    members[num_threads].seen = atomic_load_explicit(&team.news, memory_order_relaxed);
    if (pthread_create(&members[num_threads].thread, &attributes, serve, (void *)(intptr_t)num_threads)) break;
  }
  pthread_attr_destroy(&attributes);
  restore_signals(&before);
  num_wanted = num_threads;
  team.env = (Env){counters, num_threads};
}

static void end_threads(void) {
  atomic_store(&num_staying, num_wanted);
  announce(STEP_ENDS);
  while (num_threads > num_wanted) pthread_join(members[--num_threads].thread, NULL);
  team.env = (Env){counters, num_threads};
}

void cupola_begin(void) {
  pthread_mutex_lock(&step_lock);
  atomic_store_explicit(&leader, pthread_self(), memory_order_relaxed);
  if (num_threads < num_wanted) start_threads();
  if (num_threads > 1) announce(STEP_BEGINS);
}

void cupola_end(void) {
  if (num_threads > 1) announce(STEP_ENDS);
  atomic_store_explicit(&leader, (pthread_t)0, memory_order_relaxed);
  pthread_mutex_unlock(&step_lock);
}

EXPORT int32_t cupola_set_threads(int32_t count) {
  pthread_mutex_lock(&step_lock);
  num_wanted = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  if (num_threads > num_wanted) end_threads();
  if (num_threads < num_wanted) start_threads();
  count = num_threads;
  pthread_mutex_unlock(&step_lock);
  return count;
}

/* What kernels call */

static int launch(Task task, void *data, int num_tasks) {
  (void)num_tasks; /* always 0: as many as there are threads */
  if (pthread_equal(atomic_load_explicit(&leader, memory_order_relaxed), pthread_self())) return run_region(task, data);
  cupola_begin();
  int code = run_region(task, data);
  cupola_end();
  return code;
}

static int barrier(int index, Env *env) {
  Line *lines = env->sync;
  int64_t now = atomic_load_explicit(&lines[index].value, memory_order_relaxed) + 1;
  if (env->num_tasks == 1) return 0;
  atomic_store_explicit(&lines[index].value, now, memory_order_release);
  for (int32_t i = 0; i < env->num_tasks; ++i)
    for (int64_t count = 0; atomic_load_explicit(&lines[i].value, memory_order_acquire) < now; ++count) {
      if (count >= PATIENCE && atomic_load_explicit(&num_failed, memory_order_relaxed)) return -1;
      wait_a_moment(count);
    }
  return 0;
}

/* Scratch memory is taken and given back in the order of a stack, or nearly: each thread keeps a few blocks, which grow. */
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

static void *take(int device_type, int device_id, uint64_t size, int type_code, int type_bits) {
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

static int give(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  Block *blocks = pthread_getspecific(blocks_key);
  for (int i = 0; blocks && i < NUM_BLOCKS; ++i)
    if (blocks[i].taken && blocks[i].memory == memory) return blocks[i].taken = 0;
  return -1;
}

/* Loading and forking */

#if !defined(_WIN32)
static void before_fork(void) {
  pthread_mutex_lock(&step_lock);
  pthread_mutex_lock(&sleep_lock);
}

static void after_fork(void) {
  pthread_mutex_unlock(&sleep_lock);
  pthread_mutex_unlock(&step_lock);
}

static void after_fork_in_child(void) {
  num_threads = 1;
  team.env = (Env){counters, 1};
  atomic_store(&num_sleeping, 0);
  woken = (pthread_cond_t)PTHREAD_COND_INITIALIZER; /* the old one counts threads that are not here */
  after_fork();
}
#endif

/* Kernels' objects define as weak null pointers those of these that they call; a linker keeps one of each. */
int (*__TVMBackendParallelLaunch)(Task, void *, int) __attribute__((weak));
int (*__TVMBackendParallelBarrier)(int, Env *) __attribute__((weak));
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) __attribute__((weak));
int (*__TVMBackendFreeWorkspace)(int, int, void *) __attribute__((weak));

__attribute__((constructor)) static void initialize(void) {
  __TVMBackendParallelLaunch = launch;
  __TVMBackendParallelBarrier = barrier;
  __TVMBackendAllocWorkspace = take;
  __TVMBackendFreeWorkspace = give;
  team.env = (Env){counters, 1};
  pthread_key_create(&blocks_key, free_blocks);
#if !defined(_WIN32)
  pthread_atfork(before_fork, after_fork, after_fork_in_child);
#endif
}
