/* The part of a compiled library that is not compiled from a model: a team of threads, for kernels to run in.

   A step of the model is a few hundred parallel regions of some microseconds each. Its caller leads the team: it runs everything that is
   not parallel, and its part of what is. The other threads watch one line of memory, in which it says what comes next; in a line of its own
   each says that it is done. Between steps they watch for a while, then sleep, at once if another library's step begins. One step runs at a
   time; who calls meanwhile waits.

   Other programs may want the same cores. The system then stops a thread for some milliseconds wherever it is, and all others would wait for
   it. So who waits sees, by the other's processor time, whether it was stopped (`cores.c`), and gives it its own core. A member that was
   given one, or that sleeps or changes cores, is away: regions begin without it until it runs again, on another core than the leader's.

   To save power, threads sleep instead of watching, after some microseconds: OpenMP's passive wait policy. Nobody is away then, and the
   system alone chooses cores.

   Kernels call the functions below through pointers of TVM's (tvm/runtime/c_backend_api.h). A forked child has the caller's thread alone,
   and starts the others again with its first step. */

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* cores.c */
int64_t cupola_clock(void);
int cupola_has_come(_Atomic int64_t *line, int64_t value);
int cupola_start_thread(pthread_t *thread, void *(*run)(void *), void *argument);
int64_t cupola_thread(void);
int64_t cupola_processor_time(int64_t thread);
int32_t cupola_core(void);
void cupola_note_home(int index, int is_new);
void cupola_fetch(int index, int64_t thread);
int32_t cupola_leave(int index, int32_t core);
void cupola_yield(void);
void cupola_lock_cores(void);
void cupola_unlock_cores(void);
/* affinity.c */
void cupola_choose_cores(const int32_t *cores, int32_t count);
void cupola_take_cores(void);
void cupola_lead_on_cores(void);
void cupola_leave_cores(void);
/* scratch.c */
void *cupola_take(int device_type, int device_id, uint64_t size, int type_code, int type_bits);
int cupola_give(int device_type, int device_id, void *memory);

enum { MAX_THREADS = 256 };
static const int64_t NEVER = INT64_MAX;
/* Nanoseconds. Waking a thread takes 50 microseconds. A stop of less than STOPPED is the system's clock; where cores are not in demand, one of
   less than DISTURBED is a short errand of another program, sooner over than its costs. */
static const int64_t WATCH = 2000000, STOPPED = 30000, DISTURBED = 300000, WINDOW = 8000000;

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
  _Atomic int32_t is_away; /* whether the next region should begin without this member */
  int code;
} Line;

static struct {
  _Alignas(64) _Atomic int64_t news;
  Task task;
  void *data;
  Env env; /* of the members that are in */
} team = {.news = STEP_ENDS};
static Line done[MAX_THREADS], counters[MAX_THREADS];
static _Atomic int32_t num_failed; /* parts of the region; a thread whose part failed comes to no barrier any more */

typedef struct {
  _Alignas(64) _Atomic int64_t id; /* the system's */
  pthread_t thread;
  int64_t seen;
  _Atomic int64_t in_since;     /* the first region that it is in; NEVER if it is in none */
  int part;                     /* of each region */
  _Atomic int32_t given;        /* 1 + the core that somebody gave it, until it has left that again */
  _Atomic int32_t is_in_demand; /* whether other programs want its core */
  int64_t looked, used;         /* when it looked at the clocks last, and its processor time then */
  int64_t awake, ran;           /* for how long it was and ran, in this window */
} Member;

static pthread_mutex_t step_lock = PTHREAD_MUTEX_INITIALIZER; /* held by who leads; what follows is its */
static int32_t num_wanted = 1, num_threads = 1;
static Member members[MAX_THREADS]; /* the first is who leads */
static int parts[MAX_THREADS];      /* whose part of a region that is */

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news_came = PTHREAD_COND_INITIALIZER, part_came = PTHREAD_COND_INITIALIZER;
static _Atomic int32_t num_sleeping, leader_sleeps;
static _Atomic int32_t num_staying = 1; /* threads from this index on leave the team */
static _Atomic int32_t leader_core = -1;
static _Atomic int32_t saves_power; /* changes between steps */
static _Atomic int64_t own_turn;
static _Atomic int64_t *_Atomic turn = &own_turn; /* which library's step began last, of those that share this */

static _Atomic pthread_t leader; /* 0 is nobody: a lock's owner, for the owner itself to see */

/* Those of a region that begins now. */
int32_t cupola_num_threads(void) { return team.env.num_tasks; }

/* Sleep */

static void begin_to_run(Member *self) {
  self->looked = cupola_clock();
  self->used = cupola_processor_time(self->id);
}

/* Notes how much of the time a thread ran since it looked. Others want its core if it lost an eighth of a window. */
static void note_time(Member *self) {
  int64_t looked = self->looked, used = self->used;
  begin_to_run(self);
  self->awake += self->looked - looked, self->ran += self->used - used;
  if (self->awake < WINDOW) return;
  int32_t is_in_demand = (self->awake - self->ran) * 8 > self->awake;
  if (self->is_in_demand != is_in_demand) atomic_store_explicit(&self->is_in_demand, is_in_demand, memory_order_relaxed);
  self->awake = self->ran = 0;
}

static int64_t turn_of_this(void) { return (int64_t)(intptr_t)&team; }

/* Whether no other library's step began since this one's did. */
static int is_on_turn(void) {
  return atomic_load_explicit(atomic_load_explicit(&turn, memory_order_acquire), memory_order_relaxed) == turn_of_this();
}

static int32_t is_saving(void) { return atomic_load_explicit(&saves_power, memory_order_relaxed); }

/* What tells that a line has changed. */
static pthread_cond_t *condition_of(const _Atomic int64_t *line) { return line == &team.news ? &news_came : &part_came; }

static void wake_all(void) {
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&news_came);
  pthread_cond_broadcast(&part_came);
  pthread_mutex_unlock(&sleep_lock);
}

static void wake_those_of(const _Atomic int64_t *line) {
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(condition_of(line));
  pthread_mutex_unlock(&sleep_lock);
}

static void sleep_until(_Atomic int64_t *line, int64_t value, int index) {
  note_time(&members[index]);
  pthread_mutex_lock(&sleep_lock);
  atomic_fetch_add(&num_sleeping, 1);
  if (index == 0) atomic_store(&leader_sleeps, 1);
  while (atomic_load(line) < value && !atomic_load(&num_failed)) pthread_cond_wait(condition_of(line), &sleep_lock);
  if (index == 0) atomic_store(&leader_sleeps, 0);
  atomic_fetch_sub(&num_sleeping, 1);
  pthread_mutex_unlock(&sleep_lock);
  begin_to_run(&members[index]);
}

/* Who goes to sleep has seen, after it was counted, that the line is as it was. */
static void publish(_Atomic int64_t *line, int64_t value) {
  atomic_store(line, value);
  if (atomic_load(&num_sleeping) == 0) return;
  if (is_saving())
    wake_those_of(line);
  else
    wake_all();
}

/* Waiting */

/* Waits until a line that the other one writes has come to `value`, unless that thread is stopped. */
static int comes(_Atomic int64_t *line, int64_t value, Member *other) {
  int64_t since = cupola_clock(), used = cupola_processor_time(other->id);
  if (atomic_load(&num_sleeping)) wake_all(); /* the news of a region may have missed who went to sleep just then */
  while (!cupola_has_come(line, value) && !atomic_load(&num_failed)) {
    cupola_yield();
    int64_t now = cupola_clock();
    if (now - since < (atomic_load_explicit(&other->is_in_demand, memory_order_relaxed) ? STOPPED : DISTURBED)) continue;
    int64_t then = used;
    used = cupola_processor_time(other->id);
    if (used == then) return 0;
    since = now;
  }
  return 1;
}

static void set_away(int index, int is_away) { /* the leader reads that line */
  if (atomic_load_explicit(&done[index].is_away, memory_order_relaxed) != is_away)
    atomic_store_explicit(&done[index].is_away, is_away, memory_order_release);
}

/* Waits for another one's part of a region, or for it to come to a barrier. */
static void await_part(_Atomic int64_t *line, int64_t value, int index, int other) {
  if (cupola_has_come(line, value)) return;
  if (is_saving()) return sleep_until(line, value, index);
  if (comes(line, value, &members[other])) return;
  int32_t core = cupola_core();
  if (index == 0 || other == 0) atomic_store(&leader_core, core);
  if (other > 0) atomic_store(&members[other].given, core + 1);
  cupola_fetch(other, members[other].id);
  sleep_until(line, value, index);
}

/* Waits for what comes after the news that were seen. A leader that is stopped gets this core, and continues there. */
static void await_news(int index, int64_t seen) {
  int64_t until = cupola_clock() + WATCH;
  while (!cupola_has_come(&team.news, seen + 1)) {
    if (is_saving()) {
      sleep_until(&team.news, seen + 1, index); /* a part that failed wakes it too */
      continue;
    }
    int is_idle = seen % KINDS == STEP_ENDS;
    if (is_idle ? is_on_turn() && cupola_clock() < until : comes(&team.news, seen + 1, &members[0])) {
      if (is_idle) cupola_yield();
      continue;
    }
    int32_t core = cupola_core();
    int may_swap = !is_idle && !atomic_load(&leader_sleeps);
    set_away(index, 1);
    if (may_swap) {
      atomic_store(&leader_core, core);
      cupola_fetch(0, members[0].id);
    }
    if (!may_swap || !cupola_leave(index, core)) {
      sleep_until(&team.news, seen + 1, index);
      cupola_leave(index, atomic_load(&leader_core));
    }
    set_away(index, 0);
  }
}

/* The team */

static int run_part(int part, Task task, void *data) {
  int code = task(part, &team.env, data);
  if (code) atomic_fetch_add(&num_failed, 1);
  return code;
}

static int is_in(int index, int64_t region) { return atomic_load_explicit(&members[index].in_since, memory_order_relaxed) <= region; }

static void run_own_part(int index, int64_t region) {
  Member *self = &members[index];
  done[index].code = run_part(self->part, team.task, team.data);
  int32_t given = atomic_load_explicit(&self->given, memory_order_relaxed);
  if (given) set_away(index, 1);
  publish(&done[index].value, region);
  if (!given) return;
  cupola_leave(index, given - 1);
  atomic_store(&self->given, 0);
  set_away(index, 0);
}

static void *serve(void *argument) {
  int index = (int)(intptr_t)argument;
  int64_t news = members[index].seen;
  cupola_take_cores();
  cupola_note_home(index, 1);
  atomic_store(&members[index].id, cupola_thread());
  begin_to_run(&members[index]);
  for (;;) {
    await_news(index, news);
    news = atomic_load_explicit(&team.news, memory_order_acquire);
    if (news % KINDS == REGION) {
      if (is_in(index, news)) run_own_part(index, news);
    } else {
      if (index >= atomic_load_explicit(&num_staying, memory_order_acquire)) return NULL;
      cupola_note_home(index, 0);
      note_time(&members[index]);
    }
  }
}

static int anyone_is_out(void) { return team.env.num_tasks < num_threads; }

/* Says that something happens that is no region. */
static void announce(int kind) {
  int64_t number = atomic_load_explicit(&team.news, memory_order_relaxed) / KINDS + 1;
  atomic_store(&team.news, number * KINDS + kind);
  if (kind == STEP_BEGINS && (atomic_load(&num_sleeping) == 0 || (is_saving() && !anyone_is_out()))) return; /* a region wakes those in */
  if (kind == STEP_ENDS && num_wanted >= num_threads) return; /* nobody has to leave */
  wake_all();
}

static int64_t next_region(void) { return (atomic_load_explicit(&team.news, memory_order_relaxed) / KINDS + 1) * KINDS + REGION; }

/* Takes members that are away out of the next region, and those in that are back. */
static void gather(void) {
  int64_t next = next_region();
  int32_t num_in = 1;
  for (int i = 1; i < num_threads; ++i) {
    int is_away = atomic_load_explicit(&done[i].is_away, memory_order_acquire);
    if (is_away == is_in(i, next)) atomic_store_explicit(&members[i].in_since, is_away ? NEVER : next, memory_order_relaxed);
    if (is_away) continue;
    parts[num_in] = i;
    members[i].part = num_in++;
  }
  team.env = (Env){counters, num_in};
  atomic_store(&num_failed, 0);
  for (int i = 0; i < num_threads; ++i) atomic_store_explicit(&counters[i].value, 0, memory_order_relaxed);
}

static int run_region(Task task, void *data) {
  if (num_threads == 1) return task(0, &team.env, data);
  int64_t region = next_region();
  int has_changed = 0;
  for (int i = 1; i < num_threads; ++i) has_changed |= atomic_load_explicit(&done[i].is_away, memory_order_relaxed) == is_in(i, region);
  if (has_changed) gather();
  team.task = task;
  team.data = data;
  if (is_saving()) {
    publish(&team.news, region); /* most sleep, and none may miss it */
  } else {
    atomic_store_explicit(&team.news, region, memory_order_release);
    if (atomic_load_explicit(&num_sleeping, memory_order_relaxed)) wake_all();
  }
  int code = run_part(0, task, data);
  for (int i = 1; i < num_threads; ++i) {
    if (!is_in(i, region)) continue;
    while (atomic_load_explicit(&done[i].value, memory_order_acquire) < region) await_part(&done[i].value, region, 0, i);
    code |= done[i].code;
  }
  if (code) gather();
  return code;
}

/* Starts as many threads as there should be, or as the system gives. */
static void start_threads(void) {
  atomic_store(&num_staying, num_wanted);
  for (; num_threads < num_wanted; ++num_threads) {
    Member *member = &members[num_threads];
    *member = (Member){.seen = atomic_load_explicit(&team.news, memory_order_relaxed), .in_since = NEVER};
    set_away(num_threads, 0);
    if (cupola_start_thread(&member->thread, serve, (void *)(intptr_t)num_threads)) break;
  }
  num_wanted = num_threads;
  gather();
}

static void end_threads(void) {
  atomic_store(&num_staying, num_wanted);
  announce(STEP_ENDS);
  while (num_threads > num_wanted) pthread_join(members[--num_threads].thread, NULL);
  gather();
}

void cupola_begin(void) {
  pthread_mutex_lock(&step_lock);
  atomic_store_explicit(&leader, pthread_self(), memory_order_relaxed);
  if (num_threads < num_wanted) start_threads();
  if (!is_on_turn()) atomic_store_explicit(atomic_load_explicit(&turn, memory_order_acquire), turn_of_this(), memory_order_relaxed);
  cupola_lead_on_cores();
  if (num_threads == 1) return;
  int64_t id = cupola_thread();
  cupola_note_home(0, id != members[0].id);
  atomic_store(&members[0].id, id);
  begin_to_run(&members[0]);
  atomic_store_explicit(&leader_core, cupola_core(), memory_order_relaxed);
  announce(STEP_BEGINS);
}

void cupola_end(void) {
  if (num_threads > 1) note_time(&members[0]), announce(STEP_ENDS);
  cupola_leave_cores();
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

/* Threads run on these cores alone, from the next step on; with a count of 0 anywhere. */
EXPORT void cupola_set_cores(const int32_t *cores, int32_t count) {
  pthread_mutex_lock(&step_lock);
  int32_t wanted = num_wanted;
  num_wanted = 1;
  if (num_threads > 1) end_threads();
  cupola_choose_cores(cores, count);
  num_wanted = wanted;
  if (num_threads < num_wanted) start_threads();
  pthread_mutex_unlock(&step_lock);
}

/* Whether threads that wait sleep, instead of watching for what comes next. */
EXPORT void cupola_set_power_saver(int32_t is_on) {
  pthread_mutex_lock(&step_lock);
  atomic_store(&saves_power, is_on != 0);
  wake_all();
  pthread_mutex_unlock(&step_lock);
}

/* Which library's step began last: whoever share the word let their threads sleep while it is another one's turn. It outlives them all. */
EXPORT void cupola_share_turn(_Atomic int64_t *word) { atomic_store_explicit(&turn, word, memory_order_release); }

/* What kernels call */

static int launch(Task task, void *data, int num_tasks) {
  (void)num_tasks; /* always 0: as many as there are threads */
  if (pthread_equal(atomic_load_explicit(&leader, memory_order_relaxed), pthread_self())) return run_region(task, data);
  cupola_begin();
  int code = run_region(task, data);
  cupola_end();
  return code;
}

static int barrier(int part, Env *env) {
  Line *lines = env->sync;
  int64_t now = atomic_load_explicit(&lines[part].value, memory_order_relaxed) + 1;
  if (env->num_tasks == 1) return 0;
  publish(&lines[part].value, now);
  for (int i = 0; i < env->num_tasks; ++i)
    while (atomic_load_explicit(&lines[i].value, memory_order_acquire) < now) {
      if (atomic_load_explicit(&num_failed, memory_order_relaxed)) return -1;
      await_part(&lines[i].value, now, parts[part], parts[i]);
    }
  return 0;
}

/* Loading and forking */

#if !defined(_WIN32)
static void before_fork(void) {
  pthread_mutex_lock(&step_lock);
  pthread_mutex_lock(&sleep_lock);
  cupola_lock_cores();
}

static void after_fork(void) {
  cupola_unlock_cores();
  pthread_mutex_unlock(&sleep_lock);
  pthread_mutex_unlock(&step_lock);
}

static void after_fork_in_child(void) {
  num_threads = 1;
  team.env = (Env){counters, 1};
  atomic_store(&num_sleeping, 0);
  news_came = part_came = (pthread_cond_t)PTHREAD_COND_INITIALIZER; /* the old ones count threads that are not here */
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
  __TVMBackendAllocWorkspace = cupola_take;
  __TVMBackendFreeWorkspace = cupola_give;
  team.env = (Env){counters, 1};
#if !defined(_WIN32)
  pthread_atfork(before_fork, after_fork, after_fork_in_child);
#endif
}
