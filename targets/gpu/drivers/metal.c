/* The part of a library for Apple's GPUs that is not compiled from a model: it compiles the kernels, launches them, and holds the device's memory.

   Metal is reached through the Objective-C runtime, both found when the library is opened, so that neither an SDK nor a compiler of Apple's is
   needed to build it. GPU and CPU share memory: an address is the CPU's, of which a launch makes a buffer and an offset. Launches run in their
   order. So many of them make a command buffer: the device works on one while the next is encoded, and none takes so long that the system
   takes it for hung.

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
extern const char *const cupola_parameters[]; /* of each, in order: p for a pointer, 4 or 8 for a number of so many bytes */
extern const char cupola_image[];             /* the kernels in Metal Shading Language */

typedef struct Object *Id;
typedef const struct Name *Selector;
typedef unsigned long Unsigned; /* NSUInteger */
typedef struct {
  Unsigned width, height, depth;
} Size; /* MTLSize */

#define FUNCTIONS(F) \
  F(objc_getClass, Id, (const char *)) \
  F(sel_registerName, Selector, (const char *)) \
  F(objc_msgSend, void, (void)) /* called as the function that it finds: it passes on whatever registers hold */ \
  F(objc_autoreleasePoolPush, void *, (void)) \
  F(objc_autoreleasePoolPop, void, (void *)) \
  F(MTLCreateSystemDefaultDevice, Id, (void))

#define DECLARE_FUNCTION(name, result, parameters) static result(*name) parameters;
FUNCTIONS(DECLARE_FUNCTION)

/* Messages: what we call them, their selectors, what they give, and what they take behind the receiver and the selector. */
#define MESSAGES(M) \
  M(create, "new", Id) \
  M(retain, "retain", Id) \
  M(release, "release", void) \
  M(string, "stringWithUTF8String:", Id, const char *) \
  M(characters, "UTF8String", const char *) \
  M(description, "localizedDescription", Id) \
  M(set_fast_math, "setFastMathEnabled:", void, _Bool) \
  M(new_library, "newLibraryWithSource:options:error:", Id, Id, Id, Id *) \
  M(new_function, "newFunctionWithName:", Id, Id) \
  M(new_pipeline, "newComputePipelineStateWithFunction:error:", Id, Id, Id *) \
  M(simd_width, "threadExecutionWidth", Unsigned) \
  M(max_threads, "maxTotalThreadsPerThreadgroup", Unsigned) \
  M(new_queue, "newCommandQueue", Id) \
  M(new_buffer, "newBufferWithLength:options:", Id, Unsigned, Unsigned) \
  M(contents, "contents", void *) \
  M(working_set, "recommendedMaxWorkingSetSize", uint64_t) \
  M(allocated, "currentAllocatedSize", Unsigned) \
  M(command_buffer, "commandBuffer", Id) \
  M(compute_encoder, "computeCommandEncoder", Id) \
  M(set_pipeline, "setComputePipelineState:", void, Id) \
  M(set_buffer, "setBuffer:offset:atIndex:", void, Id, Unsigned, Unsigned) \
  M(set_bytes, "setBytes:length:atIndex:", void, const void *, Unsigned, Unsigned) \
  M(dispatch, "dispatchThreadgroups:threadsPerThreadgroup:", void, Size, Size) \
  M(end_encoding, "endEncoding", void) \
  M(commit, "commit", void) \
  M(wait, "waitUntilCompleted", void) \
  M(status, "status", Unsigned) \
  M(error, "error", Id)

#define DECLARE_MESSAGE(name, selector, result, ...) \
  typedef result name##_message(Id, Selector, ##__VA_ARGS__); \
  static Selector name##_selector;
MESSAGES(DECLARE_MESSAGE)
#define SEND(name, receiver, ...) ((name##_message *)objc_msgSend)(receiver, name##_selector, ##__VA_ARGS__)

enum { STORAGE_SHARED = 0, STATUS_ERROR = 5 }; /* MTLResourceStorageModeShared, MTLCommandBufferStatusError */
enum { LANES = 32, MAX_NUMBERS = 64, MAX_LAUNCHES = 64 /* of a command buffer */ };
enum { NO_METAL = 1000, NO_DEVICE, NOT_COMPILED, NOT_ALLOCATED, TOO_MANY_THREADS, STEP_FAILED };

typedef struct {
  Id pipeline;
  int64_t max_threads;
} Kernel;
typedef struct {
  char *address;
  int64_t bytes;
  Id buffer;
} Memory;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;        /* of commands */
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static Memory *memories;                                        /* by address */
static int64_t num_memories, max_memories;

static Id device, queue, commands, encoder, committed; /* commands are encoded; those before are committed */
static int num_launches;                               /* of the former */
static Kernel *kernels;
static void *pool; /* takes what messages give us without owning it */
static int32_t failure;
static char message[2048] = "no error";

static int32_t failed(int32_t code, const char *what, const char *why) {
  snprintf(message, sizeof message, "%s%s%s", what, *why ? ": " : "", why);
  return code;
}

static const char *text_of(Id error) {
  const char *text = error ? SEND(characters, SEND(description, error)) : NULL;
  return text ? text : "for a reason that Metal does not tell";
}

EXPORT const char *cupola_error(void) { return message; }

#ifdef CUPOLA_SOFTGPU
void *softgpu_function(const char *name);
static int load_frameworks(void) { return 1; }
static void *function(const char *name) { return softgpu_function(name); }
#else
/* CoreGraphics makes it that there is a default device for a program that has no window. */
static int load_frameworks(void) {
  const int flags = RTLD_NOW | RTLD_GLOBAL;
  return dlopen("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics", flags) &&
         dlopen("/System/Library/Frameworks/Metal.framework/Metal", flags);
}
static void *function(const char *name) { return dlsym(RTLD_DEFAULT, name); }
#endif

static int32_t find_metal(void) {
  if (!load_frameworks()) return failed(NO_METAL, "there is no Metal", dlerror());
#define FIND_FUNCTION(name, result, parameters) \
  if (!(name = (result(*) parameters)function(#name))) return failed(NO_METAL, "this system lacks a function", #name);
  FUNCTIONS(FIND_FUNCTION)
#define FIND_SELECTOR(name, selector, ...) name##_selector = sel_registerName(selector);
  MESSAGES(FIND_SELECTOR)
  return 0;
}

static Id new_string(const char *text) { return SEND(string, objc_getClass("NSString"), text); }

/* Fast math would take for granted that there is no infinity and no NaN. */
static int32_t compile(void) {
  Id error = NULL, options = SEND(create, objc_getClass("MTLCompileOptions"));
  SEND(set_fast_math, options, 0);
  Id library = SEND(new_library, device, new_string(cupola_image), options, &error);
  SEND(release, options);
  if (!library) return failed(NOT_COMPILED, "Metal does not compile the kernels", text_of(error));
  kernels = calloc(cupola_num_symbols + 1, sizeof *kernels);
  for (int32_t i = 0; i < cupola_num_symbols; ++i) {
    Id found = SEND(new_function, library, new_string(cupola_symbols[i]));
    if (!found) return failed(NOT_COMPILED, cupola_symbols[i], "Metal does not find it");
    Id pipeline = SEND(new_pipeline, device, found, &error);
    SEND(release, found);
    if (!pipeline) return failed(NOT_COMPILED, cupola_symbols[i], text_of(error));
    if (SEND(simd_width, pipeline) != LANES) return failed(NOT_COMPILED, cupola_symbols[i], "SIMD groups of this device do not have 32 lanes");
    kernels[i] = (Kernel){pipeline, (int64_t)SEND(max_threads, pipeline)};
  }
  SEND(release, library);
  return 0;
}

static int32_t load(void) {
  int32_t code = find_metal();
  if (code) return code;
  pool = objc_autoreleasePoolPush();
  device = MTLCreateSystemDefaultDevice();
  queue = device ? SEND(new_queue, device) : NULL;
  code = queue ? compile() : failed(NO_DEVICE, "Metal has no device here", "");
  objc_autoreleasePoolPop(pool);
  return code;
}

/* Finds the device and compiles the kernels, once. */
EXPORT int32_t cupola_open(void) {
  static int32_t code = -1;
  pthread_mutex_lock(&lock);
  if (code) code = load();
  pthread_mutex_unlock(&lock);
  return code;
}

static void wait_for(Id buffer) {
  if (!buffer) return;
  SEND(wait, buffer);
  if (SEND(status, buffer) == STATUS_ERROR) failure = failed(STEP_FAILED, "the device failed", text_of(SEND(error, buffer)));
  SEND(release, buffer);
}

/* Hands over what is encoded, then waits for what was handed over before. */
static void commit_commands(void) {
  const Id former = committed;
  if (!encoder) return;
  SEND(end_encoding, encoder);
  SEND(commit, commands);
  SEND(release, encoder);
  committed = commands;
  commands = encoder = NULL;
  wait_for(former);
}

/* Waits for all that was launched; the first error since the last time. */
static int32_t finish(void) {
  commit_commands();
  wait_for(committed);
  committed = NULL;
  const int32_t code = failure;
  failure = 0;
  return code;
}

void cupola_begin(void) {
  pthread_mutex_lock(&lock);
  if (device) pool = objc_autoreleasePoolPush();
}

void cupola_end(void) {
  if (device) {
    commit_commands();
    objc_autoreleasePoolPop(pool);
  }
  pthread_mutex_unlock(&lock);
}

EXPORT int32_t cupola_set_threads(int32_t count) { return (void)count, 1; }

EXPORT int32_t cupola_synchronize(void) {
  cupola_begin();
  const int32_t code = finish();
  cupola_end();
  return code;
}

/* The time at which all that was launched is done, in nanoseconds. */
int64_t cupola_clock(void) {
  struct timespec now;
  failure = finish();
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The index of the last memory that begins at an address or below it, or -1. */
static int64_t last_below(const char *address) {
  int64_t low = 0, high = num_memories;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (memories[middle].address <= address) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

EXPORT void *cupola_allocate(int64_t bytes) {
  void *const own = objc_autoreleasePoolPush();
  Id buffer = SEND(new_buffer, device, bytes ? bytes : 1, STORAGE_SHARED);
  objc_autoreleasePoolPop(own);
  if (!buffer) return failed(NOT_ALLOCATED, "Metal gives no memory", ""), NULL;
  const Memory memory = {SEND(contents, buffer), bytes ? bytes : 1, buffer};
  pthread_mutex_lock(&memory_lock);
  if (num_memories == max_memories) {
    max_memories = 2 * max_memories + 64;
    memories = realloc(memories, max_memories * sizeof *memories);
  }
  const int64_t index = last_below(memory.address) + 1;
  memmove(memories + index + 1, memories + index, (num_memories++ - index) * sizeof *memories);
  memories[index] = memory;
  pthread_mutex_unlock(&memory_lock);
  return memory.address;
}

/* Commands that use the memory keep it until they are done. */
EXPORT void cupola_free(void *address) {
  Id buffer = NULL;
  pthread_mutex_lock(&memory_lock);
  const int64_t index = last_below(address);
  if (index >= 0 && memories[index].address == address) {
    buffer = memories[index].buffer;
    memmove(memories + index, memories + index + 1, (--num_memories - index) * sizeof *memories);
  }
  pthread_mutex_unlock(&memory_lock);
  if (buffer) SEND(release, buffer);
}

/* From anywhere to anywhere, after what was launched before. */
EXPORT int32_t cupola_copy(void *to, const void *from, int64_t bytes) {
  const int32_t code = cupola_synchronize();
  if (!code) memmove(to, from, bytes);
  return code;
}

EXPORT int32_t cupola_clear(void *memory, int64_t bytes) {
  const int32_t code = cupola_synchronize();
  if (!code) memset(memory, 0, bytes);
  return code;
}

/* Bytes of memory: those that are free, and all that the device can use well. */
EXPORT int32_t cupola_memory(int64_t *bytes) {
  bytes[1] = SEND(working_set, device);
  bytes[0] = bytes[1] - (int64_t)SEND(allocated, device);
  if (bytes[0] < 0) bytes[0] = 0;
  return 0;
}

static int32_t set_memory(const char *address, Unsigned index, const char *kernel) {
  pthread_mutex_lock(&memory_lock);
  const int64_t found = last_below(address);
  const Memory memory = found < 0 ? (Memory){0} : memories[found];
  pthread_mutex_unlock(&memory_lock);
  if (address >= memory.address + memory.bytes) return failed(NOT_ALLOCATED, kernel, "a pointer is into no memory of the device's");
  SEND(set_buffer, encoder, memory.buffer, address - memory.address, index);
  return 0;
}

/* Pointers are buffers in their order; behind them comes one of all numbers, eight bytes each. */
int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes) {
  const char *const name = cupola_symbols[index];
  const Kernel kernel = kernels[index];
  uint64_t numbers[MAX_NUMBERS] = {0};
  Unsigned num_pointers = 0, num_numbers = 0;
  (void)shared_bytes; /* kernels say themselves what they need */
  if (extents[3] * extents[4] * extents[5] > kernel.max_threads) return failed(TOO_MANY_THREADS, name, "more threads in a group than it may have");
  if (!encoder) {
    commands = SEND(retain, SEND(command_buffer, queue));
    encoder = SEND(retain, SEND(compute_encoder, commands));
    num_launches = 0;
  }
  SEND(set_pipeline, encoder, kernel.pipeline);
  for (const char *parameter = cupola_parameters[index]; *parameter; ++parameter, ++arguments) {
    if (*parameter != 'p') {
      memcpy(&numbers[num_numbers++], *arguments, *parameter - '0');
      continue;
    }
    const int32_t code = set_memory(*(char **)*arguments, num_pointers++, name);
    if (code) return code;
  }
  if (num_numbers) SEND(set_bytes, encoder, numbers, num_numbers * sizeof *numbers, num_pointers);
  SEND(dispatch, encoder, (Size){extents[0], extents[1], extents[2]}, (Size){extents[3], extents[4], extents[5]});
  if (++num_launches == MAX_LAUNCHES) commit_commands();
  return 0;
}

/* A constant's place in the device's memory; it is brought there when it is first asked for. */
void *cupola_hold(void **place, const void *constant, int64_t bytes) {
  if (!*place && (*place = cupola_allocate(bytes))) memcpy(*place, constant, bytes);
  return *place;
}

typedef int32_t (*Step)(const int64_t *dims, void *const *inputs, char *workspace);

int32_t cupola_step(Step step, const int64_t *dims, int64_t num_dims, void *const *inputs, int64_t num_inputs, char *workspace) {
  return (void)num_dims, (void)num_inputs, step(dims, inputs, workspace);
}
