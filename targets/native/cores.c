/* Threads and cores, as the system knows them. On Linux who waits may see that another thread was stopped, and move it.

   Elsewhere a thread that waits lets others run, each time it looks. Linux's sched_yield isn't for that: since 6.6 (EEVDF) it gives a whole
   turn away. */

#define _GNU_SOURCE
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { MAX_THREADS = 256, STACK_BYTES = 8 << 20 };

/* How a core says that it waits for another one, and how often it does before it asks why: a few microseconds. */
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

int64_t cupola_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether a line of memory has come to `value`, or does within some microseconds. */
int cupola_has_come(_Atomic int64_t *line, int64_t value) {
  for (int count = 0; count < PATIENCE; ++count) {
    if (atomic_load_explicit(line, memory_order_acquire) >= value) return 1;
    PAUSE();
  }
  return 0;
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

/* Keeps this library in memory, where the linker has no flag for that (targets/native/systems.py). */
static void stay(void) {
#if defined(_WIN32)
  HMODULE self;
  GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, (LPCWSTR)(void *)stay, &self);
#elif defined(__APPLE__)
  Dl_info self;
  if (dladdr((void *)stay, &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
#endif
}

/* Gives an error's number, or 0. */
int cupola_start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
  sigset_t before;
  pthread_attr_t attributes;
  stay();
  block_signals(&before);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  int code = pthread_create(thread, &attributes, run, argument);
  pthread_attr_destroy(&attributes);
  restore_signals(&before);
  return code;
}

#if defined(__linux__) && !defined(__ANDROID__)
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* The thread that calls; 0 is none. */
int64_t cupola_thread(void) { return syscall(SYS_gettid); }

/* Nanoseconds; of the caller where there is no such thread yet. */
int64_t cupola_processor_time(int64_t thread) {
  enum { OF_A_THREAD = 4, BY_THE_SCHEDULER = 2 }; /* bits of a clock's number (include/linux/posix-timers_types.h) */
  struct timespec used = {0, 0};
  clock_gettime((clockid_t)(~(uint32_t)thread << 3 | OF_A_THREAD | BY_THE_SCHEDULER), &used);
  return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

int32_t cupola_core(void) { return sched_getcpu(); }

void cupola_yield(void) {}

/* Where each member of the team may run. It is read only while nobody moves another thread, which narrows that for a moment. */
static cpu_set_t homes[MAX_THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void cupola_lock_cores(void) { pthread_mutex_lock(&lock); }
void cupola_unlock_cores(void) { pthread_mutex_unlock(&lock); }

/* The caller is that member, and holds the lock. */
void cupola_read_home(int index) {
  cpu_set_t home;
  if (!sched_getaffinity(0, sizeof home, &home))
    homes[index] = home;
  else
    CPU_ZERO(&homes[index]); /* more cores than there are bits: it isn't moved */
}

/* The caller is that member: of a new one, waits until it can be read. */
void cupola_note_home(int index, int is_new) {
  if (is_new ? pthread_mutex_lock(&lock) : pthread_mutex_trylock(&lock)) return;
  cupola_read_home(index);
  cupola_unlock_cores();
}

static int move(int index, pid_t thread, int32_t core, int to_it) {
  cpu_set_t home = homes[index], chosen;
  if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &home) || CPU_COUNT(&home) < 2) return 0;
  CPU_ZERO(&chosen);
  CPU_SET(core, &chosen);
  if (!to_it) CPU_XOR(&chosen, &chosen, &home);
  int has_moved = !sched_setaffinity(thread, sizeof chosen, &chosen);
  sched_setaffinity(thread, sizeof home, &home);
  return has_moved;
}

/* Moves another member to the caller's core, unless another one is being moved. */
void cupola_fetch(int index, int64_t thread) {
  if (thread == 0 || pthread_mutex_trylock(&lock)) return;
  move(index, (pid_t)thread, cupola_core(), 1);
  cupola_unlock_cores();
}

/* Moves the caller, that member, to another core, if it is on that one: whether it has. It may wait long for that, and holds no lock. */
int32_t cupola_leave(int index, int32_t core) { return cupola_core() == core && move(index, 0, core, 0); }
#else
int64_t cupola_thread(void) { return 0; }
int64_t cupola_processor_time(int64_t thread) { return (void)thread, cupola_clock(); } /* nobody is ever stopped */
void cupola_lock_cores(void) {}
void cupola_unlock_cores(void) {}
int32_t cupola_core(void) { return -1; }
void cupola_yield(void) { sched_yield(); }
void cupola_read_home(int index) { (void)index; }
void cupola_note_home(int index, int is_new) { (void)index, (void)is_new; }
void cupola_fetch(int index, int64_t thread) { (void)index, (void)thread; }
int32_t cupola_leave(int index, int32_t core) { return (void)index, (void)core, 0; }
#endif
