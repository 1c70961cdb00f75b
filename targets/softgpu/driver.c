/* CUDA's driver on a CPU, and AMD's, which differs little, as far as `targets/gpu/` asks for them. Memory ends at a page that nobody may
   touch. A launch runs at once, or when its graph is launched. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tensor_map.h"

typedef int Status;
typedef uint64_t Address;
typedef struct {
  const char *name;
  const char *(*entry)(void **arguments, const int64_t *extents, int64_t shared_bytes, unsigned seed);
  const unsigned *sizes; /* bytes of each argument, then 0 */
} Kernel;
extern const Kernel softgpu_kernels[]; /* the last has no name */
const unsigned char cupola_image[] = "";

enum { OUT_OF_MEMORY = 2, NOT_FOUND = 500, LAUNCH_FAILED = 719, MAX_ARGUMENTS = 64 };
static const size_t PAGE = 4096, ALIGNMENT = 64, DEVICE_BYTES = (size_t)4 << 30, SMALL = 1 << 20;

typedef struct Operation {
  const Kernel *kernel; /* NULL: of memory */
  int64_t extents[6], shared_bytes;
  void *arguments[MAX_ARGUMENTS];
  void *to;
  const void *from; /* NULL: zeros */
  size_t bytes;
  struct Operation *next;
} Operation;
typedef struct {
  Operation *first, **end;
} Graph;
typedef struct Memory {
  Address address;
  size_t pages;
  struct Memory *next;
} Memory;

static Memory *allocated;
static size_t in_use;
static Graph *capturing;
static char message[512] = "no error";
static int something; /* that handles point to */

static Status failed(Status status, const char *name, const char *what) {
  snprintf(message, sizeof message, "%s%s%s", name, *name ? ": " : "", what);
  return status;
}

static Status run(const Operation *operation) {
  const char *seed = getenv("SOFTGPU_SEED"), *error;
  if (!operation->kernel) {
    if (operation->from) memmove(operation->to, operation->from, operation->bytes);
    else memset(operation->to, 0, operation->bytes);
    return 0;
  }
  error = operation->kernel->entry((void **)operation->arguments, operation->extents, operation->shared_bytes, seed ? atoi(seed) : 0);
  return error ? failed(LAUNCH_FAILED, operation->kernel->name, error) : 0;
}

static Status submit(const Operation *operation) {
  Operation *kept;
  if (!capturing) return run(operation);
  kept = malloc(sizeof *kept);
  *kept = *operation;
  for (int i = 0; kept->kernel && kept->kernel->sizes[i]; ++i) {
    kept->arguments[i] = aligned_alloc(ALIGNMENT, (kept->kernel->sizes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memcpy(kept->arguments[i], operation->arguments[i], kept->kernel->sizes[i]);
  }
  kept->next = NULL;
  *capturing->end = kept;
  capturing->end = &kept->next;
  return 0;
}

static Status cuInit(unsigned flags) { return (void)flags, 0; }
static Status cuGetErrorString(Status status, const char **text) { return *text = status ? message : "no error", 0; }
static Status cuDeviceGet(int *device, int index) { return *device = index, 0; }
static Status cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, *context = &something, 0; }
static Status cuCtxSetCurrent(void *context) { return (void)context, 0; }
static Status cuModuleLoadData(void **module, const void *image) { return (void)image, *module = &something, 0; }
static Status cuFuncSetAttribute(void *function, int attribute, int value) { return (void)function, (void)attribute, (void)value, 0; }
static Status cuStreamCreate(void **stream, unsigned flags) { return (void)flags, *stream = &something, 0; }
static Status cuStreamSynchronize(void *stream) { return (void)stream, 0; }

static Status cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  for (const Kernel *kernel = softgpu_kernels; kernel->name; ++kernel)
    if (!strcmp(kernel->name, name)) return *function = (void *)kernel, 0;
  return failed(NOT_FOUND, name, "there is no such kernel");
}

static Status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                             void *stream, void **arguments, void **extra) {
  Operation operation = {.kernel = function, .extents = {gx, gy, gz, bx, by, bz}, .shared_bytes = shared};
  (void)stream, (void)extra;
  for (int i = 0; operation.kernel->sizes[i]; ++i) {
    if (i == MAX_ARGUMENTS) return failed(LAUNCH_FAILED, operation.kernel->name, "it has too many arguments");
    operation.arguments[i] = arguments[i];
  }
  return submit(&operation);
}

static Status cuMemAlloc_v2(Address *address, size_t bytes) {
  const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (whole + PAGE - 1) / PAGE * PAGE;
  char *memory = in_use + pages > DEVICE_BYTES ? MAP_FAILED
                                               : mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  Memory *kept;
  if (memory == MAP_FAILED) return failed(OUT_OF_MEMORY, "", "out of memory");
  mprotect(memory + pages, PAGE, PROT_NONE);
  *address = (Address)(memory + pages - whole);
  if (whole <= SMALL) memset((void *)*address, 0xff, whole); /* NaN; large memory, of K/V or weights, is taken as it is written */
  kept = malloc(sizeof *kept);
  *kept = (Memory){*address, pages, allocated};
  allocated = kept;
  in_use += pages;
  return 0;
}

static Status cuMemFree_v2(Address address) {
  for (Memory **at = &allocated; *at; at = &(*at)->next)
    if ((*at)->address == address) {
      Memory *found = *at;
      *at = found->next;
      in_use -= found->pages;
      munmap((void *)(address / PAGE * PAGE), found->pages + PAGE);
      free(found);
      return 0;
    }
  return failed(1, "", "memory is freed that was not allocated");
}

static Status cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return *free_bytes = DEVICE_BYTES - in_use, *total = DEVICE_BYTES, 0; }

static Status cuMemcpyAsync(Address to, Address from, size_t bytes, void *stream) {
  Operation operation = {.to = (void *)to, .from = (const void *)from, .bytes = bytes};
  return (void)stream, submit(&operation);
}

static Status cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
  Operation operation = {.to = (void *)to, .bytes = bytes};
  return (void)value, (void)stream, submit(&operation);
}

static Status cuTensorMapEncodeTiled(void *map, unsigned type, unsigned rank, void *base, const uint64_t *sizes, const uint64_t *strides,
                                     const uint32_t *box, const uint32_t *element_strides, int interleave, unsigned swizzle, int promotion,
                                     int fill) {
  static const uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}; /* of CUtensorMapDataType */
  const char *name = "cuTensorMapEncodeTiled";
  TensorMap *kept = map;
  (void)promotion;
  if (type >= sizeof bytes || rank < 1 || rank > TENSOR_MAP_RANK || swizzle > 3) return failed(1, name, "an unknown type, rank or swizzle");
  if (interleave || fill) return failed(1, name, "only tiles without interleaving, filled with zeros");
  if ((Address)base % 16 || (Address)map % 64) return failed(1, name, "a misaligned address");
  *kept = (TensorMap){.base = base, .strides = {bytes[type]}, .swizzle = swizzle ? 16 << swizzle : 0, .rank = rank};
  for (unsigned i = 0; i < rank; ++i) {
    if (i && strides[i - 1] % 16) return failed(1, name, "a stride that is not a multiple of 16 bytes");
    if (box[i] < 1 || box[i] > 256 || element_strides[i] != 1) return failed(1, name, "a box of no or more than 256 elements, or not all of them");
    if (i) kept->strides[i] = strides[i - 1];
    kept->sizes[i] = sizes[i], kept->box[i] = box[i];
  }
  if (box[0] * bytes[type] % 16) return failed(1, name, "rows of a box that are not a multiple of 16 bytes");
  if (swizzle && box[0] * bytes[type] > kept->swizzle) return failed(1, name, "rows of a box that are longer than its swizzle");
  return 0;
}

static Status cuStreamBeginCapture_v2(void *stream, int mode) {
  (void)stream, (void)mode;
  capturing = calloc(1, sizeof *capturing);
  capturing->end = &capturing->first;
  return 0;
}

static Status cuStreamEndCapture(void *stream, void **graph) { return (void)stream, *graph = capturing, capturing = NULL, 0; }

/* A graph and what is made of it share their operations, which are never freed: tests capture few. */
static Status cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  *executable = malloc(sizeof(Graph));
  memcpy(*executable, graph, sizeof(Graph));
  return (void)flags, 0;
}

static Status cuGraphLaunch(void *executable, void *stream) {
  Status status = 0;
  (void)stream;
  for (const Operation *operation = ((Graph *)executable)->first; operation && !status; operation = operation->next) status = run(operation);
  return status;
}

static Status cuGraphDestroy(void *graph) { return free(graph), 0; }
static Status cuGraphExecDestroy(void *executable) { return free(executable), 0; }

/* What HIP has otherwise. */
enum { BY_ADDRESSES = 4 };
static Status hipSetDevice(int device) { return device ? failed(101, "", "there is no such device") : 0; }

static Status hipMemcpyAsync(Address to, Address from, size_t bytes, int kind, void *stream) {
  return kind == BY_ADDRESSES ? cuMemcpyAsync(to, from, bytes, stream) : failed(21, "", "an unknown kind of copy");
}

#define ENTRY(name) {#name, (void *)name}
#define ALIAS(name, function) {#name, (void *)function}
static const struct {
  const char *name;
  void *function;
} functions[] = {
    ENTRY(cuInit), ENTRY(cuGetErrorString), ENTRY(cuDeviceGet), ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuCtxSetCurrent),
    ENTRY(cuModuleLoadData), ENTRY(cuModuleGetFunction), ENTRY(cuFuncSetAttribute), ENTRY(cuStreamCreate), ENTRY(cuStreamSynchronize),
    ENTRY(cuLaunchKernel), ENTRY(cuMemAlloc_v2), ENTRY(cuMemFree_v2), ENTRY(cuMemGetInfo_v2), ENTRY(cuMemcpyAsync),
    ENTRY(cuTensorMapEncodeTiled), ENTRY(cuMemsetD8Async), ENTRY(cuStreamBeginCapture_v2), ENTRY(cuStreamEndCapture), ENTRY(cuGraphInstantiateWithFlags),
    ENTRY(cuGraphLaunch), ENTRY(cuGraphDestroy), ENTRY(cuGraphExecDestroy),
    ENTRY(hipSetDevice), ENTRY(hipMemcpyAsync),
    ALIAS(hipInit, cuInit), ALIAS(hipDrvGetErrorString, cuGetErrorString), ALIAS(hipModuleLoadData, cuModuleLoadData),
    ALIAS(hipModuleGetFunction, cuModuleGetFunction), ALIAS(hipStreamCreateWithFlags, cuStreamCreate),
    ALIAS(hipStreamSynchronize, cuStreamSynchronize), ALIAS(hipModuleLaunchKernel, cuLaunchKernel), ALIAS(hipMalloc, cuMemAlloc_v2),
    ALIAS(hipFree, cuMemFree_v2), ALIAS(hipMemGetInfo, cuMemGetInfo_v2), ALIAS(hipMemsetD8Async, cuMemsetD8Async),
    ALIAS(hipStreamBeginCapture, cuStreamBeginCapture_v2), ALIAS(hipStreamEndCapture, cuStreamEndCapture),
    ALIAS(hipGraphInstantiateWithFlags, cuGraphInstantiateWithFlags), ALIAS(hipGraphLaunch, cuGraphLaunch),
    ALIAS(hipGraphDestroy, cuGraphDestroy), ALIAS(hipGraphExecDestroy, cuGraphExecDestroy)};

void *softgpu_function(const char *name) {
  for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i)
    if (!strcmp(functions[i].name, name)) return functions[i].function;
  return NULL;
}
