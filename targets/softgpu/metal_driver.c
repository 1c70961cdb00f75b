/* Metal and the Objective-C runtime on a CPU, as far as `targets/gpu/drivers/metal.c` asks for them. What is left open there is made to hurt: commands
   run when somebody waits for them, and no sooner; objects count their owners, and whoever sends a message to one that is gone, or that does
   not know it, ends the process. Memory ends at a page that nobody may touch. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef unsigned long Unsigned;
typedef struct {
  const char *name;
  const char *(*entry)(void **arguments, const int64_t *extents, int64_t shared_bytes, unsigned seed);
  const unsigned *sizes; /* one of each buffer, then 0 */
} Kernel;
extern const Kernel softgpu_kernels[]; /* the last has no name */

typedef struct {
  Unsigned width, height, depth;
} Size;

enum { MAX_BUFFERS = 31, MAX_BYTES = 4096, MAX_THREADS = 1024, LANES = 32, MAX_SELECTORS = 64 };
enum { NOT_ENQUEUED = 0, COMMITTED = 2, COMPLETED = 4, ERROR = 5 }; /* MTLCommandBufferStatus */
static const size_t PAGE = 4096, ALIGNMENT = 64, DEVICE_BYTES = (size_t)4 << 30, SMALL = 1 << 20;

typedef struct {
  const char *selector;
  void *function;
} Method;
typedef struct Object Object;
typedef struct {
  const char *name;
  const Method *methods;
  void (*end)(Object *);
} Class;
typedef const char *Selector;

typedef struct Launch {
  const Kernel *kernel;
  int64_t extents[6];
  Object *buffers[MAX_BUFFERS]; /* NULL: bytes */
  void *pointers[MAX_BUFFERS];
  struct Launch *next;
} Launch;

struct Object {
  const Class *class; /* NULL: it is gone */
  int owners;
  Object *of;           /* an encoder's command buffer, an error's string, a pipeline's function */
  char *text;           /* of strings and libraries */
  const Kernel *kernel; /* of functions, pipelines, and of an encoder that has got one */
  char *memory;         /* of buffers */
  size_t bytes;
  int is_fast, has_ended; /* of options, of encoders */
  Unsigned status;        /* of command buffers, as are these */
  Launch *first, **end;
  Object *buffers[MAX_BUFFERS]; /* of encoders */
  void *pointers[MAX_BUFFERS];
  char bytes_set[MAX_BYTES];
};

static size_t in_use;
static int num_objects; /* that are there */
static Object *pooled[4096];
static size_t num_pooled, num_pools;

static void fault(const char *what, const char *which) {
  fprintf(stderr, "softmetal: %s: %s\n", which, what);
  abort();
}

static Object *make(const Class *class) {
  Object *made = calloc(1, sizeof *made);
  made->class = class, made->owners = 1;
  ++num_objects;
  return made;
}

static Object *retain(Object *self, Selector selector) { return (void)selector, ++self->owners, self; }

static void release(Object *self, Selector selector) {
  (void)selector;
  if (--self->owners) return;
  if (self->class->end) self->class->end(self);
  self->class = NULL; /* and is kept, so that later messages are told */
  --num_objects;
}

static Object *autoreleased(Object *self) {
  if (!num_pools || num_pooled == sizeof pooled / sizeof *pooled) fault("it is given away where there is no pool, or too many are", self->class->name);
  return pooled[num_pooled++] = self;
}

static void *objc_autoreleasePoolPush(void) { return ++num_pools, (void *)num_pooled; }

static void objc_autoreleasePoolPop(void *pool) {
  if (!num_pools--) fault("there is none", "pool");
  while (num_pooled > (size_t)pool) release(pooled[--num_pooled], "release");
}

#define OWNING {"retain", (void *)retain}, {"release", (void *)release}
#define CLASS(name, ends, ...) \
  static const Method name##_methods[] = {OWNING, __VA_ARGS__, {NULL, NULL}}; \
  static const Class name = {#name, name##_methods, ends}

/* Strings and errors */

static void end_text(Object *self) { free(self->text); }
static const char *characters(Object *self, Selector selector) { return (void)selector, self->text; }
CLASS(NSString, end_text, {"UTF8String", (void *)characters});

static Object *string(Object *self, Selector selector, const char *text) {
  (void)self, (void)selector;
  Object *made = autoreleased(make(&NSString));
  made->text = strdup(text);
  return made;
}

static void end_of(Object *self) {
  if (self->of) release(self->of, "release");
}
static Object *description(Object *self, Selector selector) { return (void)selector, self->of; }
CLASS(NSError, end_of, {"localizedDescription", (void *)description});

static Object *new_error(const char *what, const char *which) { /* nobody's yet */
  char text[512];
  Object *made = make(&NSError);
  snprintf(text, sizeof text, "%s: %s", which, what);
  made->of = retain(string(NULL, NULL, text), NULL);
  return made;
}

/* Libraries */

static Object *new_options(Object *self, Selector selector);
static void set_fast_math(Object *self, Selector selector, _Bool is_fast) { (void)selector, self->is_fast = is_fast; }
CLASS(MTLCompileOptions, NULL, {"setFastMathEnabled:", (void *)set_fast_math});
static Object *new_options(Object *self, Selector selector) {
  Object *made = make(&MTLCompileOptions);
  (void)self, (void)selector;
  made->is_fast = 1;
  return made;
}

CLASS(MTLFunction, NULL, {"name", NULL});

static Unsigned simd_width(Object *self, Selector selector) { return (void)self, (void)selector, LANES; }
static Unsigned max_threads(Object *self, Selector selector) { return (void)self, (void)selector, MAX_THREADS; }
CLASS(MTLComputePipelineState, NULL, {"threadExecutionWidth", (void *)simd_width}, {"maxTotalThreadsPerThreadgroup", (void *)max_threads});

static Object *new_function(Object *self, Selector selector, Object *name) {
  char declared[512];
  (void)selector;
  snprintf(declared, sizeof declared, "kernel void %s(", name->text);
  if (!strstr(self->text, declared)) return NULL;
  for (const Kernel *kernel = softgpu_kernels; kernel->name; ++kernel)
    if (!strcmp(kernel->name, name->text)) {
      Object *made = make(&MTLFunction);
      made->kernel = kernel;
      return made;
    }
  return NULL;
}
CLASS(MTLLibrary, end_text, {"newFunctionWithName:", (void *)new_function});

/* Memory */

static void end_buffer(Object *self) {
  const size_t pages = (self->bytes + PAGE - 1) / PAGE * PAGE;
  in_use -= pages;
  munmap((void *)((uintptr_t)self->memory / PAGE * PAGE), pages + PAGE);
}
static void *contents(Object *self, Selector selector) { return (void)selector, self->memory; }
CLASS(MTLBuffer, end_buffer, {"contents", (void *)contents});

static Object *new_buffer(Object *self, Selector selector, Unsigned bytes, Unsigned options) {
  const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (whole + PAGE - 1) / PAGE * PAGE;
  (void)self, (void)selector;
  if (!bytes || options) fault("it has no bytes, or is not shared", "MTLBuffer");
  if (in_use + pages > DEVICE_BYTES) return NULL;
  char *memory = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  mprotect(memory + pages, PAGE, PROT_NONE);
  Object *made = make(&MTLBuffer);
  made->memory = memory + pages - whole, made->bytes = whole;
  if (whole <= SMALL) memset(made->memory, 0xff, whole); /* NaN; large memory, of K/V or weights, is taken as it is written */
  in_use += pages;
  return made;
}

/* Commands */

static void end_commands(Object *self) {
  if (self->status == COMMITTED) fault("nobody has waited for it", "MTLCommandBuffer");
  end_of(self);
}

static void forget(Launch *launch) {
  for (int i = 0; launch->kernel->sizes[i]; ++i)
    if (launch->buffers[i]) release(launch->buffers[i], "release");
    else free(launch->pointers[i]);
  free(launch);
}

static void wait(Object *self, Selector selector) {
  const char *seed = getenv("SOFTGPU_SEED"), *error = NULL;
  (void)selector;
  if (self->status < COMMITTED) fault("it is waited for before it is committed", self->class->name);
  for (Launch *launch = self->first, *next; launch; launch = next) {
    if (!error && (error = launch->kernel->entry(launch->pointers, launch->extents, 0, seed ? atoi(seed) : 0)))
      self->of = new_error(error, launch->kernel->name);
    next = launch->next;
    forget(launch);
  }
  self->first = NULL;
  self->status = self->of ? ERROR : COMPLETED;
}

static void set_pipeline(Object *self, Selector selector, Object *pipeline) { (void)selector, self->kernel = pipeline->kernel; }

static void set_buffer(Object *self, Selector selector, Object *buffer, Unsigned offset, Unsigned index) {
  (void)selector;
  if (index >= MAX_BUFFERS || buffer->class != &MTLBuffer || offset >= buffer->bytes) fault("it is bound to no place in a buffer", "setBuffer");
  self->buffers[index] = buffer, self->pointers[index] = buffer->memory + offset;
}

static void set_bytes(Object *self, Selector selector, const void *bytes, Unsigned count, Unsigned index) {
  (void)selector;
  if (index >= MAX_BUFFERS || count > MAX_BYTES) fault("there are too many", "setBytes");
  self->buffers[index] = NULL, self->pointers[index] = memcpy(self->bytes_set, bytes, count);
}

static void dispatch(Object *self, Selector selector, Size groups, Size threads) {
  Launch *launch = calloc(1, sizeof *launch);
  (void)selector;
  if (!self->kernel || self->has_ended) fault("it has no kernel, or has ended", "dispatchThreadgroups");
  *launch = (Launch){self->kernel, {groups.width, groups.height, groups.depth, threads.width, threads.height, threads.depth}};
  for (int i = 0; self->kernel->sizes[i]; ++i) {
    if (!self->pointers[i]) fault("a buffer is bound to nothing", self->kernel->name);
    if ((launch->buffers[i] = self->buffers[i])) launch->pointers[i] = self->pointers[i], retain(self->buffers[i], NULL);
    else launch->pointers[i] = memcpy(malloc(MAX_BYTES), self->bytes_set, MAX_BYTES);
  }
  *self->of->end = launch;
  self->of->end = &launch->next;
}

static void end_encoding(Object *self, Selector selector) { (void)selector, self->has_ended = 1, self->of->has_ended = 1; }

static void end_encoder(Object *self) {
  if (!self->has_ended) fault("it has not ended", "MTLComputeCommandEncoder");
  end_of(self);
}
CLASS(MTLComputeCommandEncoder, end_encoder, {"setComputePipelineState:", (void *)set_pipeline}, {"setBuffer:offset:atIndex:", (void *)set_buffer},
      {"setBytes:length:atIndex:", (void *)set_bytes}, {"dispatchThreadgroups:threadsPerThreadgroup:", (void *)dispatch},
      {"endEncoding", (void *)end_encoding});

static Object *compute_encoder(Object *self, Selector selector) {
  Object *made = make(&MTLComputeCommandEncoder);
  (void)selector;
  if (self->status != NOT_ENQUEUED || self->end != &self->first) fault("it has an encoder already", self->class->name);
  made->of = retain(self, NULL);
  return autoreleased(made);
}

static void commit(Object *self, Selector selector) {
  (void)selector;
  if (!self->has_ended || self->status != NOT_ENQUEUED) fault("its encoder has not ended, or it is committed already", self->class->name);
  self->status = COMMITTED;
}

static Unsigned status(Object *self, Selector selector) { return (void)selector, self->status; }
static Object *error(Object *self, Selector selector) { return (void)selector, self->of; }
CLASS(MTLCommandBuffer, end_commands, {"computeCommandEncoder", (void *)compute_encoder}, {"commit", (void *)commit},
      {"waitUntilCompleted", (void *)wait}, {"status", (void *)status}, {"error", (void *)error});

static Object *command_buffer(Object *self, Selector selector) {
  Object *made = make(&MTLCommandBuffer);
  (void)self, (void)selector;
  made->end = &made->first;
  return autoreleased(made);
}
CLASS(MTLCommandQueue, NULL, {"commandBuffer", (void *)command_buffer});

/* The device */

static Object *new_queue(Object *self, Selector selector) { return (void)self, (void)selector, make(&MTLCommandQueue); }
static uint64_t working_set(Object *self, Selector selector) { return (void)self, (void)selector, DEVICE_BYTES; }
static Unsigned allocated(Object *self, Selector selector) { return (void)self, (void)selector, in_use; }

static Object *new_library(Object *self, Selector selector, Object *source, Object *options, Object **why) {
  Object *made = make(&MTLLibrary);
  (void)self, (void)selector, (void)why;
  if (options->is_fast) fault("kernels are executed without fast math here", "newLibraryWithSource");
  made->text = strdup(source->text);
  return made;
}

static Object *new_pipeline(Object *self, Selector selector, Object *function, Object **why) {
  Object *made = make(&MTLComputePipelineState);
  (void)self, (void)selector, (void)why;
  made->kernel = function->kernel;
  return made;
}
CLASS(MTLDevice, NULL, {"newCommandQueue", (void *)new_queue}, {"newLibraryWithSource:options:error:", (void *)new_library},
      {"newComputePipelineStateWithFunction:error:", (void *)new_pipeline}, {"newBufferWithLength:options:", (void *)new_buffer},
      {"recommendedMaxWorkingSetSize", (void *)working_set}, {"currentAllocatedSize", (void *)allocated});

static Object *MTLCreateSystemDefaultDevice(void) { return make(&MTLDevice); }

/* The Objective-C runtime */

CLASS(string_class, NULL, {"stringWithUTF8String:", (void *)string});
CLASS(options_class, NULL, {"new", (void *)new_options});

static Object *objc_getClass(const char *name) {
  static Object strings = {&string_class, 1}, options = {&options_class, 1};
  return !strcmp(name, "NSString") ? &strings : !strcmp(name, "MTLCompileOptions") ? &options : NULL;
}

static Selector sel_registerName(const char *name) {
  static const char *known[MAX_SELECTORS];
  int i = 0;
  for (; i < MAX_SELECTORS && known[i]; ++i)
    if (!strcmp(known[i], name)) return known[i];
  if (i == MAX_SELECTORS) fault("there are too many selectors", name);
  return known[i] = strdup(name);
}

/* The function that a message calls, or one that gives 0 for nobody. */
static intptr_t nothing(void) { return 0; }
__attribute__((visibility("hidden"), used)) void *softmetal_method(const Object *receiver, Selector selector) {
  if (!receiver) return (void *)nothing;
  if (!receiver->class) fault("it is sent to an object that is gone", selector);
  for (const Method *method = receiver->class->methods; method->selector; ++method)
    if (!strcmp(method->selector, selector)) return method->function;
  fault("it is sent to an object that does not know it", selector);
  return NULL;
}

/* Leaves all arguments where they are. */
void objc_msgSend(void) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".hidden objc_msgSend\n"
    ".globl objc_msgSend\n"
    "objc_msgSend:\n"
    "  pushq %rdi\n  pushq %rsi\n  pushq %rdx\n  pushq %rcx\n  pushq %r8\n  pushq %r9\n  subq $8, %rsp\n"
    "  call softmetal_method\n"
    "  addq $8, %rsp\n  popq %r9\n  popq %r8\n  popq %rcx\n  popq %rdx\n  popq %rsi\n  popq %rdi\n"
    "  jmp *%rax\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n"
    ".hidden objc_msgSend\n"
    ".globl objc_msgSend\n"
    "objc_msgSend:\n"
    "  stp x29, x30, [sp, #-80]!\n"
    "  stp x0, x1, [sp, #16]\n  stp x2, x3, [sp, #32]\n  stp x4, x5, [sp, #48]\n  stp x6, x7, [sp, #64]\n"
    "  bl softmetal_method\n"
    "  mov x16, x0\n"
    "  ldp x0, x1, [sp, #16]\n  ldp x2, x3, [sp, #32]\n  ldp x4, x5, [sp, #48]\n  ldp x6, x7, [sp, #64]\n"
    "  ldp x29, x30, [sp], #80\n"
    "  br x16\n");
#else
#error "softmetal has no objc_msgSend for this CPU"
#endif

#define ENTRY(name) {#name, (void *)name}
static const struct {
  const char *name;
  void *function;
} functions[] = {ENTRY(objc_getClass), ENTRY(sel_registerName), ENTRY(objc_msgSend), ENTRY(objc_autoreleasePoolPush),
                 ENTRY(objc_autoreleasePoolPop), ENTRY(MTLCreateSystemDefaultDevice)};

void *softgpu_function(const char *name) {
  for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i)
    if (!strcmp(functions[i].name, name)) return functions[i].function;
  return NULL;
}

/* For tests: how many objects there are. */
__attribute__((visibility("default"))) int32_t softmetal_num_objects(void) { return num_objects; }
