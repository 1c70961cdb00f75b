/* The part of a library for a GPU that is not compiled from a model: it loads the kernels, launches them, and holds the device's memory.

   The driver is looked for when the library is opened, so that the library itself needs nothing of its vendor's. All work goes to one stream,
   and one step runs at a time. A step of the same sizes and addresses as the last one is replayed as a graph: its launches then cost the host
   one call instead of some hundred.

   Who includes this has VENDOR, LIBRARIES, which are the names that the driver's library may have, FUNCTIONS, and what is declared below for a
   vendor to say. Functions that give int32_t give 0, or an error's number, whose text `cupola_error` has. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

extern const int32_t cupola_num_symbols;
extern const char *const cupola_symbols[];
extern const unsigned char cupola_image[];

typedef void *Handle; /* of a context, module, function, stream or graph */
typedef uint64_t Address;
typedef int Status; /* of the driver's functions; 0 is success */

#define DECLARE(name, symbol, parameters) static Status(*name) parameters;
FUNCTIONS(DECLARE)

/* What each vendor's file says. */
static int32_t find_device(void);                            /* the first one, which this thread uses then */
static Status use_device(void);                              /* for this thread */
static Status copy(Address to, Address from, size_t bytes);  /* on the stream */
static Status allow_shared(Handle function, unsigned bytes); /* before a launch whose blocks get so much of it */

enum { NON_BLOCKING = 1, CAPTURE_RELAXED = 2 };
enum { NO_DRIVER = 1000, NO_FUNCTION };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Handle stream, *functions;
static char message[256] = "no error";

static int32_t failed(Status status, const char *what) {
  const char *text = NULL;
  if (!status) return 0;
  if (getErrorString) getErrorString(status, &text);
  snprintf(message, sizeof message, "%s: %s", what, text ? text : "an error that the driver has no text for");
  return status;
}

#define CHECK(call) \
  do { \
    const int32_t code_ = failed(call, #call); \
    if (code_) return code_; \
  } while (0)

EXPORT const char *cupola_error(void) { return message; }

#ifdef CUPOLA_SOFTGPU
void *softgpu_function(const char *name);
static void *driver(void) { return message; } /* anything but NULL */
static void *function(void *of, const char *name) { return (void)of, softgpu_function(name); }
#else
static void *driver(void) {
  const char *const names[] = {LIBRARIES};
  void *found = NULL;
  for (size_t i = 0; !found && i < sizeof names / sizeof *names; ++i) found = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
  return found;
}
static void *function(void *of, const char *name) { return dlsym(of, name); }
#endif

static int32_t find_driver(void) {
  void *found = driver();
  if (!found) {
    snprintf(message, sizeof message, "there is no " VENDOR " driver: %s", dlerror());
    return NO_DRIVER;
  }
#define FIND(name, symbol, parameters) \
  if (!(name = (Status(*) parameters)function(found, symbol))) { \
    snprintf(message, sizeof message, VENDOR "'s driver lacks %s; a later one has it", symbol); \
    return NO_FUNCTION; \
  }
  FUNCTIONS(FIND)
  return 0;
}

static int32_t load(void) {
  Handle module;
  int32_t code = find_driver();
  if (code) return code;
  CHECK(init(0));
  if ((code = find_device())) return code;
  CHECK(moduleLoadData(&module, cupola_image));
  CHECK(streamCreate(&stream, NON_BLOCKING)); /* which does not wait for the default stream */
  functions = calloc(cupola_num_symbols + 1, sizeof *functions);
  for (int32_t i = 0; i < cupola_num_symbols; ++i) CHECK(moduleGetFunction(&functions[i], module, cupola_symbols[i]));
  return 0;
}

/* Finds the driver and loads the kernels, once. */
EXPORT int32_t cupola_open(void) {
  static int32_t code = -1;
  pthread_mutex_lock(&lock);
  if (code) code = load();
  pthread_mutex_unlock(&lock);
  return code;
}

void cupola_begin(void) {
  pthread_mutex_lock(&lock);
  if (stream) use_device();
}

void cupola_end(void) { pthread_mutex_unlock(&lock); }

EXPORT int32_t cupola_set_threads(int32_t count) { return (void)count, 1; }

EXPORT int32_t cupola_synchronize(void) {
  CHECK(use_device());
  CHECK(streamSynchronize(stream));
  return 0;
}

/* The time at which all that was launched is done, in nanoseconds. */
int64_t cupola_clock(void) {
  struct timespec now;
  cupola_synchronize();
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

EXPORT void *cupola_allocate(int64_t bytes) {
  Address address = 0;
  if (failed(use_device(), "use_device") || failed(memAlloc(&address, bytes ? bytes : 1), "memAlloc")) return NULL;
  return (void *)address;
}

EXPORT void cupola_free(void *memory) {
  use_device();
  memFree((Address)memory);
}

/* From anywhere to anywhere, after what was launched before. What the host reads is there once `cupola_synchronize` is back. */
EXPORT int32_t cupola_copy(void *to, const void *from, int64_t bytes) {
  CHECK(use_device());
  CHECK(copy((Address)to, (Address)from, bytes));
  return 0;
}

EXPORT int32_t cupola_clear(void *memory, int64_t bytes) {
  CHECK(use_device());
  CHECK(memsetD8Async((Address)memory, 0, bytes, stream));
  return 0;
}

/* Bytes of memory: those that are free, and all. */
EXPORT int32_t cupola_memory(int64_t *bytes) {
  size_t free, total;
  CHECK(use_device());
  CHECK(memGetInfo(&free, &total));
  bytes[0] = free, bytes[1] = total;
  return 0;
}

int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes) {
  const unsigned shared = (unsigned)shared_bytes;
  unsigned size[6];
  for (int i = 0; i < 6; ++i) size[i] = (unsigned)extents[i];
  CHECK(allow_shared(functions[index], shared));
  CHECK(launchKernel(functions[index], size[0], size[1], size[2], size[3], size[4], size[5], shared, stream, arguments, NULL));
  return 0;
}

/* A constant's place in the device's memory; it is brought there when it is first asked for. */
void *cupola_hold(void **place, const void *constant, int64_t bytes) {
  if (!*place) {
    void *memory = cupola_allocate(bytes);
    if (memory && !cupola_copy(memory, constant, bytes) && !cupola_synchronize()) *place = memory;
  }
  return *place;
}

/* A step: its launches, or a graph of them, which is made when a step is like the one before. */
typedef int32_t (*Step)(const int64_t *dims, void *const *inputs, char *workspace);

static struct {
  Handle graph;
  void *key;
  size_t bytes;
  int seen;
} last;

static int is_like_the_last(const int64_t *dims, int64_t num_dims, void *const *inputs, int64_t num_inputs, char *workspace) {
  const size_t sizes = num_dims * sizeof *dims, addresses = num_inputs * sizeof *inputs, bytes = sizes + addresses + sizeof workspace;
  char *key = malloc(bytes);
  memcpy(key, dims, sizes);
  memcpy(key + sizes, inputs, addresses);
  memcpy(key + sizes + addresses, &workspace, sizeof workspace);
  if (last.key && last.bytes == bytes && !memcmp(last.key, key, bytes)) {
    free(key);
    return 1;
  }
  free(last.key);
  if (last.graph) graphExecDestroy(last.graph);
  last.key = key, last.bytes = bytes, last.graph = NULL;
  return 0;
}

int32_t cupola_step(Step step, const int64_t *dims, int64_t num_dims, void *const *inputs, int64_t num_inputs, char *workspace) {
  Handle graph;
  if (!is_like_the_last(dims, num_dims, inputs, num_inputs, workspace) || getenv("CUPOLA_NO_GRAPHS")) return step(dims, inputs, workspace);
  if (!last.graph) {
    CHECK(streamBeginCapture(stream, CAPTURE_RELAXED));
    const int32_t code = step(dims, inputs, workspace);
    CHECK(streamEndCapture(stream, &graph));
    if (code) return code;
    CHECK(graphInstantiate(&last.graph, graph, 0));
    CHECK(graphDestroy(graph));
  }
  CHECK(graphLaunch(last.graph, stream));
  return 0;
}
