/* The part of a library for CUDA that is not compiled from a model: it loads the kernels, launches them, and holds the device's memory.

   The driver is looked for when the library is opened, so that the library itself needs nothing of NVIDIA's. All work goes to one stream, and
   one step runs at a time. A step of the same sizes and addresses as the last one is replayed as a graph: its launches then cost the host one
   call instead of some hundred.

   Functions that give int32_t give 0, or an error's number, whose text `cupola_error` has. */

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
typedef int Status; /* CUresult */

/* cuda.h's functions by the names that the driver exports. Of two versions of a function, cuda.h means the later one. */
#define FUNCTIONS(F) \
  F(cuInit, "cuInit", (unsigned)) \
  F(cuGetErrorString, "cuGetErrorString", (Status, const char **)) \
  F(cuDeviceGet, "cuDeviceGet", (int *, int)) \
  F(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (Handle *, int)) \
  F(cuCtxSetCurrent, "cuCtxSetCurrent", (Handle)) \
  F(cuModuleLoadData, "cuModuleLoadData", (Handle *, const void *)) \
  F(cuModuleGetFunction, "cuModuleGetFunction", (Handle *, Handle, const char *)) \
  F(cuFuncSetAttribute, "cuFuncSetAttribute", (Handle, int, int)) \
  F(cuStreamCreate, "cuStreamCreate", (Handle *, unsigned)) \
  F(cuStreamSynchronize, "cuStreamSynchronize", (Handle)) \
  F(cuLaunchKernel, "cuLaunchKernel", \
    (Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **)) \
  F(cuMemAlloc, "cuMemAlloc_v2", (Address *, size_t)) \
  F(cuMemFree, "cuMemFree_v2", (Address)) \
  F(cuMemGetInfo, "cuMemGetInfo_v2", (size_t *, size_t *)) \
  F(cuMemcpyAsync, "cuMemcpyAsync", (Address, Address, size_t, Handle)) \
  F(cuMemsetD8Async, "cuMemsetD8Async", (Address, unsigned char, size_t, Handle)) \
  F(cuStreamBeginCapture, "cuStreamBeginCapture_v2", (Handle, int)) \
  F(cuStreamEndCapture, "cuStreamEndCapture", (Handle, Handle *)) \
  F(cuGraphInstantiate, "cuGraphInstantiateWithFlags", (Handle *, Handle, unsigned long long)) \
  F(cuGraphLaunch, "cuGraphLaunch", (Handle, Handle)) \
  F(cuGraphDestroy, "cuGraphDestroy", (Handle)) \
  F(cuGraphExecDestroy, "cuGraphExecDestroy", (Handle))

#define DECLARE(name, symbol, parameters) static Status(*name) parameters;
FUNCTIONS(DECLARE)

enum { STATIC_SHARED_BYTES = 48 << 10, MAX_DYNAMIC_SHARED = 8, CAPTURE_RELAXED = 2, MAX_HELD = 256 };
enum { NO_DRIVER = 1000, NO_FUNCTION, TOO_MANY_CONSTANTS };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Handle context, stream, *functions;
static char message[256] = "no error";

static int32_t failed(Status status, const char *what) {
  const char *text = NULL;
  if (!status) return 0;
  if (cuGetErrorString) cuGetErrorString(status, &text);
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
static void *driver(void) { return message; }
static void *function(void *of, const char *name) { return (void)of, softgpu_function(name); }
#else
static void *driver(void) { return dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL); }
static void *function(void *of, const char *name) { return dlsym(of, name); }
#endif

static int32_t find_driver(void) {
  void *found = driver();
  if (!found) {
    snprintf(message, sizeof message, "there is no NVIDIA driver: %s", dlerror());
    return NO_DRIVER;
  }
#define FIND(name, symbol, parameters) \
  if (!(name = (Status(*) parameters)function(found, symbol))) { \
    snprintf(message, sizeof message, "NVIDIA's driver lacks %s; a later one has it", symbol); \
    return NO_FUNCTION; \
  }
  FUNCTIONS(FIND)
  return 0;
}

static int32_t load(void) {
  int device;
  Handle module;
  int32_t code = find_driver();
  if (code) return code;
  CHECK(cuInit(0));
  CHECK(cuDeviceGet(&device, 0));
  CHECK(cuDevicePrimaryCtxRetain(&context, device));
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuModuleLoadData(&module, cupola_image));
  CHECK(cuStreamCreate(&stream, 1)); /* which does not wait for the default stream */
  functions = calloc(cupola_num_symbols + 1, sizeof *functions);
  for (int32_t i = 0; i < cupola_num_symbols; ++i) CHECK(cuModuleGetFunction(&functions[i], module, cupola_symbols[i]));
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
  if (context) cuCtxSetCurrent(context); /* it is a thread's own */
}

void cupola_end(void) { pthread_mutex_unlock(&lock); }

EXPORT int32_t cupola_set_threads(int32_t count) { return (void)count, 1; }

EXPORT int32_t cupola_synchronize(void) {
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuStreamSynchronize(stream));
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
  if (failed(cuCtxSetCurrent(context), "cuCtxSetCurrent") || failed(cuMemAlloc(&address, bytes ? bytes : 1), "cuMemAlloc")) return NULL;
  return (void *)address;
}

EXPORT void cupola_free(void *memory) {
  cuCtxSetCurrent(context);
  cuMemFree((Address)memory);
}

/* From anywhere to anywhere, after what was launched before. What the host reads is there once `cupola_synchronize` is back. */
EXPORT int32_t cupola_copy(void *to, const void *from, int64_t bytes) {
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuMemcpyAsync((Address)to, (Address)from, bytes, stream));
  return 0;
}

EXPORT int32_t cupola_clear(void *memory, int64_t bytes) {
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuMemsetD8Async((Address)memory, 0, bytes, stream));
  return 0;
}

/* Bytes of memory: those that are free, and all. */
EXPORT int32_t cupola_memory(int64_t *bytes) {
  size_t free, total;
  CHECK(cuCtxSetCurrent(context));
  CHECK(cuMemGetInfo(&free, &total));
  bytes[0] = free, bytes[1] = total;
  return 0;
}

int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes) {
  const unsigned shared = (unsigned)shared_bytes;
  unsigned size[6];
  for (int i = 0; i < 6; ++i) size[i] = (unsigned)extents[i];
  if (shared > STATIC_SHARED_BYTES) CHECK(cuFuncSetAttribute(functions[index], MAX_DYNAMIC_SHARED, shared));
  CHECK(cuLaunchKernel(functions[index], size[0], size[1], size[2], size[3], size[4], size[5], shared, stream, arguments, NULL));
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
  if (last.graph) cuGraphExecDestroy(last.graph);
  last.key = key, last.bytes = bytes, last.graph = NULL;
  return 0;
}

int32_t cupola_step(Step step, const int64_t *dims, int64_t num_dims, void *const *inputs, int64_t num_inputs, char *workspace) {
  Handle graph;
  if (!is_like_the_last(dims, num_dims, inputs, num_inputs, workspace) || getenv("CUPOLA_NO_GRAPHS")) return step(dims, inputs, workspace);
  if (!last.graph) {
    CHECK(cuStreamBeginCapture(stream, CAPTURE_RELAXED));
    const int32_t code = step(dims, inputs, workspace);
    CHECK(cuStreamEndCapture(stream, &graph));
    if (code) return code;
    CHECK(cuGraphInstantiate(&last.graph, graph, 0));
    CHECK(cuGraphDestroy(graph));
  }
  CHECK(cuGraphLaunch(last.graph, stream));
  return 0;
}
