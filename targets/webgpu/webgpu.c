/* The part of a library for WebGPU that is not compiled from a model: it loads the kernels, launches them, and holds the device's memory.

   WebGPU is wgpu-native, as pip's package wgpu brings it: its headers when this is compiled, its library when it is opened, by the path that
   `cupola_driver` was given. Launches are recorded, and submitted when a step ends or memory is copied; the queue keeps their order.

   An address of the device's memory is DEVICE, a buffer's number and an offset in it, so that plans reckon with it as with any other.

   Functions that give int32_t give 0, or an error's number, whose text `cupola_error` has. Before this file stand wgpu.h and

       static const struct { const char *name, *code, *arguments; int uses_f16; } shaders[];

   for each kernel its entry, its WGSL and its arguments: 't' is a tensor, 'i' a number of 32 bits, 'l' one of 64, which it takes as one of 32. */

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

extern const int32_t cupola_num_symbols;

#define FUNCTIONS(F) \
  F(CreateInstance) F(InstanceRequestAdapter) F(AdapterGetLimits) F(AdapterHasFeature) F(AdapterRequestDevice) F(DeviceGetQueue) \
  F(DevicePoll) F(DeviceCreateBuffer) F(BufferRelease) F(BufferMapAsync) F(BufferGetConstMappedRange) F(BufferUnmap) \
  F(DeviceCreateShaderModuleTrusted) F(ShaderModuleRelease) F(DeviceCreateComputePipeline) F(ComputePipelineGetBindGroupLayout) \
  F(DeviceCreateBindGroup) F(BindGroupRelease) F(DeviceCreateCommandEncoder) F(CommandEncoderBeginComputePass) \
  F(CommandEncoderCopyBufferToBuffer) F(CommandEncoderClearBuffer) F(CommandEncoderFinish) F(CommandEncoderRelease) \
  F(ComputePassEncoderSetPipeline) F(ComputePassEncoderSetBindGroup) F(ComputePassEncoderDispatchWorkgroups) F(ComputePassEncoderEnd) \
  F(ComputePassEncoderRelease) F(CommandBufferRelease) F(QueueSubmit) F(QueueWriteBuffer)

#define DECLARE(name) __typeof__(&wgpu##name) name;
static struct {
  FUNCTIONS(DECLARE)
} gpu;

enum { NO_LIBRARY = 1000, NO_FUNCTION, NO_ADAPTER, NO_DEVICE, LACKS, OUT_OF_MEMORY, BAD_ADDRESS, BAD_LAUNCH, FAILED };
enum { OFFSET_BITS = 40, MAX_BUFFERS = 1 << 20, MAX_ARGUMENTS = 64, PLAN_ALIGNMENT = 64 };
static const uint64_t DEVICE = (uint64_t)1 << 62, NUMBERS_BYTES = 1 << 16;

typedef struct {
  WGPUBuffer buffer;
  uint64_t bytes; /* that were asked for; there are whole words of them */
} Memory;
typedef struct {
  WGPUComputePipeline pipeline;
  WGPUBindGroupLayout layout;
} Kernel;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static WGPUDevice device;
static WGPUQueue queue;
static WGPULimits limits;
static WGPUCommandEncoder encoder;
static WGPUComputePassEncoder pass;
static Kernel *kernels;
static WGPUBuffer numbers;   /* the numbers that kernels are given, from one submission to the next */
static char *numbers_here;   /* what will be there */
static uint64_t numbers_end; /* how much of it is taken */
static Memory *memories;
static uint32_t num_memories;
static int32_t error; /* that the device told since somebody asked */
static char path[4096], message[1024] = "no error";

static int32_t failed(int32_t code, const char *what, WGPUStringView why) {
  const int length = why.length == WGPU_STRLEN ? (int)strlen(why.data) : (int)why.length;
  snprintf(message, sizeof message, "%s%s%.*s", what, *what ? ": " : "", length, why.data ? why.data : "");
  return code;
}

static WGPUStringView text(const char *data) { return (WGPUStringView){data, WGPU_STRLEN}; }
static int32_t broke(int32_t code, const char *what) { return failed(code, "", text(what)); }

static int32_t told(void) {
  const int32_t code = error;
  error = 0;
  return code;
}

static void on_error(WGPUDevice const *of, WGPUErrorType type, WGPUStringView why, void *a, void *b) {
  (void)of, (void)type, (void)a, (void)b;
  if (!error) error = failed(FAILED, "WebGPU", why);
}

static void on_adapter(WGPURequestAdapterStatus status, WGPUAdapter adapter, WGPUStringView why, void *to, void *unused) {
  (void)unused;
  if (status == WGPURequestAdapterStatus_Success) *(WGPUAdapter *)to = adapter;
  else failed(NO_ADAPTER, "there is no GPU that Vulkan, Metal or Direct3D 12 drives", why);
}

static void on_device(WGPURequestDeviceStatus status, WGPUDevice found, WGPUStringView why, void *to, void *unused) {
  (void)unused;
  if (status == WGPURequestDeviceStatus_Success) *(WGPUDevice *)to = found;
  else failed(NO_DEVICE, "the GPU can't be used", why);
}

static void on_map(WGPUMapAsyncStatus status, WGPUStringView why, void *to, void *unused) {
  (void)unused;
  if (status == WGPUMapAsyncStatus_Success) *(int *)to = 1;
  else failed(FAILED, "memory can't be read", why);
}

EXPORT const char *cupola_error(void) { return message; }

/* Where wgpu-native's library lies. */
EXPORT void cupola_driver(const char *file) { snprintf(path, sizeof path, "%s", file); }

static int32_t find_library(void) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return failed(NO_LIBRARY, "there is no wgpu-native", text(dlerror()));
#define FIND(name) \
  if (!(gpu.name = (__typeof__(gpu.name))dlsym(library, "wgpu" #name))) return broke(NO_FUNCTION, "wgpu-native lacks wgpu" #name "; take another version");
  FUNCTIONS(FIND)
  return 0;
}

static int32_t find_device(void) {
  const WGPUInstanceExtras extras = {.chain = {.sType = (WGPUSType)WGPUSType_InstanceExtras}, .backends = WGPUInstanceBackend_Primary};
  const WGPUInstanceDescriptor described = {.nextInChain = (WGPUChainedStruct *)&extras.chain};
  const WGPURequestAdapterOptions options = {.featureLevel = WGPUFeatureLevel_Core, .powerPreference = WGPUPowerPreference_HighPerformance};
  const WGPUInstance instance = gpu.CreateInstance(&described);
  const WGPUFeatureName f16 = WGPUFeatureName_ShaderF16;
  WGPUAdapter adapter = NULL;
  int wants_f16 = 0, most = 0;
  for (int32_t i = 0; i < cupola_num_symbols; ++i) {
    int count = 0;
    for (const char *kind = shaders[i].arguments; *kind; ++kind) count += *kind == 't';
    if (count > most) most = count;
    wants_f16 |= shaders[i].uses_f16;
  }
  gpu.InstanceRequestAdapter(instance, &options, (WGPURequestAdapterCallbackInfo){
      .mode = WGPUCallbackMode_AllowSpontaneous, .callback = on_adapter, .userdata1 = &adapter});
  if (!adapter) return NO_ADAPTER;
  gpu.AdapterGetLimits(adapter, &limits);
  limits.nextInChain = NULL;
  if (wants_f16 && !gpu.AdapterHasFeature(adapter, f16))
    return broke(LACKS, "this GPU has no float16 (WebGPU's shader-f16); compile with --quant f32 for it");
  if (limits.maxStorageBuffersPerShaderStage < (uint32_t)most) {
    snprintf(message, sizeof message, "this GPU's kernels take %u tensors, and a kernel of the model %d", limits.maxStorageBuffersPerShaderStage, most);
    return LACKS;
  }
  if (limits.minStorageBufferOffsetAlignment > PLAN_ALIGNMENT) return broke(LACKS, "this GPU's tensors begin at multiples of more than 64 bytes");
  const WGPUDeviceDescriptor wanted = {.requiredFeatureCount = wants_f16, .requiredFeatures = &f16, .requiredLimits = &limits,
                                       .uncapturedErrorCallbackInfo = {.callback = on_error}};
  gpu.AdapterRequestDevice(adapter, &wanted, (WGPURequestDeviceCallbackInfo){
      .mode = WGPUCallbackMode_AllowSpontaneous, .callback = on_device, .userdata1 = &device});
  if (!device) return NO_DEVICE;
  queue = gpu.DeviceGetQueue(device);
  return 0;
}

static WGPUBuffer new_buffer(uint64_t bytes, WGPUBufferUsage usage) {
  const WGPUBufferDescriptor described = {.usage = usage, .size = bytes};
  return gpu.DeviceCreateBuffer(device, &described);
}

static int32_t load(void) {
  int32_t code = find_library();
  if (!code) code = find_device();
  if (code) return code;
  memories = calloc(MAX_BUFFERS, sizeof *memories);
  numbers = new_buffer(NUMBERS_BYTES, WGPUBufferUsage_Uniform | WGPUBufferUsage_CopyDst);
  numbers_here = malloc(NUMBERS_BYTES);
  kernels = calloc(cupola_num_symbols + 1, sizeof *kernels);
  for (int32_t i = 0; i < cupola_num_symbols; ++i) {
    const WGPUShaderSourceWGSL source = {.chain = {.sType = WGPUSType_ShaderSourceWGSL}, .code = text(shaders[i].code)};
    const WGPUShaderModuleDescriptor described = {.nextInChain = (WGPUChainedStruct *)&source.chain, .label = text(shaders[i].name)};
    const WGPUShaderModule module = gpu.DeviceCreateShaderModuleTrusted(device, &described, WGPUShaderRuntimeChecks_None);
    if (error) return told();
    const WGPUComputePipelineDescriptor pipeline = {.compute = {.module = module, .entryPoint = text(shaders[i].name)}};
    kernels[i].pipeline = gpu.DeviceCreateComputePipeline(device, &pipeline);
    if (error) return told();
    kernels[i].layout = gpu.ComputePipelineGetBindGroupLayout(kernels[i].pipeline, 0);
    gpu.ShaderModuleRelease(module);
  }
  return told();
}

void cupola_begin(void) { pthread_mutex_lock(&lock); }
void cupola_end(void) { pthread_mutex_unlock(&lock); }

/* Finds the GPU and loads the kernels, once. */
EXPORT int32_t cupola_open(void) {
  static int32_t code = -1;
  cupola_begin();
  if (code) code = load();
  cupola_end();
  return code;
}

EXPORT int32_t cupola_set_threads(int32_t count) { return (void)count, 1; }

static WGPUCommandEncoder recording(void) {
  if (!encoder) encoder = gpu.DeviceCreateCommandEncoder(device, NULL);
  return encoder;
}

static void end_pass(void) {
  if (!pass) return;
  gpu.ComputePassEncoderEnd(pass);
  gpu.ComputePassEncoderRelease(pass);
  pass = NULL;
}

/* Submits what was recorded. */
static int32_t submit(void) {
  end_pass();
  if (encoder) {
    if (numbers_end) gpu.QueueWriteBuffer(queue, numbers, 0, numbers_here, numbers_end);
    const WGPUCommandBuffer commands = gpu.CommandEncoderFinish(encoder, NULL);
    gpu.QueueSubmit(queue, 1, &commands);
    gpu.CommandBufferRelease(commands);
    gpu.CommandEncoderRelease(encoder);
    encoder = NULL, numbers_end = 0;
  }
  return told();
}

EXPORT int32_t cupola_synchronize(void) {
  cupola_begin();
  int32_t code = submit();
  gpu.DevicePoll(device, 1, NULL);
  if (!code) code = told();
  cupola_end();
  return code;
}

/* The time at which all that was launched is done, in nanoseconds. */
int64_t cupola_clock(void) {
  struct timespec now;
  cupola_synchronize();
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint64_t in_words(uint64_t bytes) { return (bytes + 3) / 4 * 4; }

static void *allocate(uint64_t bytes) {
  const uint64_t whole = bytes ? in_words(bytes) : 4;
  uint32_t index = 0;
  if (whole > limits.maxBufferSize || whole > limits.maxStorageBufferBindingSize) {
    snprintf(message, sizeof message, "one tensor of this GPU has at most %llu bytes", (unsigned long long)limits.maxStorageBufferBindingSize);
    return NULL;
  }
  while (index < num_memories && memories[index].buffer) ++index;
  if (index == MAX_BUFFERS) return broke(OUT_OF_MEMORY, "there are too many tensors"), NULL;
  const WGPUBuffer buffer = new_buffer(whole, WGPUBufferUsage_Storage | WGPUBufferUsage_CopySrc | WGPUBufferUsage_CopyDst);
  if (told() || !buffer) return NULL;
  memories[index] = (Memory){buffer, bytes};
  if (index == num_memories) ++num_memories;
    return (void *)(DEVICE | (uint64_t)index << OFFSET_BITS);
}

EXPORT void *cupola_allocate(int64_t bytes) {
  cupola_begin();
  void *address = allocate(bytes);
  cupola_end();
  return address;
}

/* The memory that an address lies in, and where; NULL for an address of the host's. */
static Memory *memory_of(const void *address, uint64_t *offset) {
  const uint64_t value = (uint64_t)address, index = (value & ~DEVICE) >> OFFSET_BITS;
  if (!(value & DEVICE)) return NULL;
  *offset = value & (((uint64_t)1 << OFFSET_BITS) - 1);
  return index < num_memories && memories[index].buffer ? &memories[index] : NULL;
}

EXPORT void cupola_free(void *address) {
  uint64_t offset;
  cupola_begin();
  Memory *memory = memory_of(address, &offset);
  if (memory) {
    gpu.BufferRelease(memory->buffer); /* work that was recorded holds it until it is done */
    *memory = (Memory){0};
  }
  cupola_end();
}

/* True if WebGPU copies these bytes, which it does by words: so their last word is whole, or ends the memory. */
static int is_in_words(const Memory *memory, uint64_t offset, uint64_t bytes) {
  return offset % 4 == 0 && offset + bytes <= memory->bytes && (bytes % 4 == 0 || offset + bytes == memory->bytes);
}

static int32_t upload(const Memory *to, uint64_t offset, const char *from, uint64_t bytes) {
  const uint64_t whole = bytes / 4 * 4;
  char last[4] = {0};
  int32_t code = submit();
  if (code) return code;
  if (whole) gpu.QueueWriteBuffer(queue, to->buffer, offset, from, whole);
  memcpy(last, from + whole, bytes - whole);
  if (whole < bytes) gpu.QueueWriteBuffer(queue, to->buffer, offset + whole, last, 4);
  return told();
}

static int32_t download(char *to, const Memory *from, uint64_t offset, uint64_t bytes) {
  const uint64_t whole = in_words(bytes);
  const WGPUBuffer staging = new_buffer(whole, WGPUBufferUsage_MapRead | WGPUBufferUsage_CopyDst);
  int is_mapped = 0;
  end_pass();
  gpu.CommandEncoderCopyBufferToBuffer(recording(), from->buffer, offset, staging, 0, whole);
  int32_t code = submit();
  if (!code) {
    gpu.BufferMapAsync(staging, WGPUMapMode_Read, 0, whole, (WGPUBufferMapCallbackInfo){
        .mode = WGPUCallbackMode_AllowSpontaneous, .callback = on_map, .userdata1 = &is_mapped});
    gpu.DevicePoll(device, 1, NULL);
    code = told();
    if (!code && !is_mapped) code = FAILED;
  }
  if (!code) memcpy(to, gpu.BufferGetConstMappedRange(staging, 0, whole), bytes);
  if (is_mapped) gpu.BufferUnmap(staging);
  gpu.BufferRelease(staging);
  return code;
}

static int32_t copy(void *to, const void *from, uint64_t bytes) {
  const uint64_t whole = in_words(bytes);
  uint64_t at = 0, start = 0;
  const Memory *target = memory_of(to, &at), *source = memory_of(from, &start);
  if (!bytes) return 0;
  if ((!target && (uint64_t)to & DEVICE) || (!source && (uint64_t)from & DEVICE)) return broke(BAD_ADDRESS, "memory was freed already");
  if ((target && !is_in_words(target, at, bytes)) || (source && !is_in_words(source, start, bytes)))
    return broke(BAD_ADDRESS, "WebGPU copies whole words of 4 bytes, within one tensor");
  if (target && !source) return upload(target, at, from, bytes);
  if (!target && source) return download(to, source, start, bytes);
  if (!target) return memmove(to, from, bytes), 0;
  const int is_one = target == source; /* from a buffer to itself WebGPU does not copy */
  const WGPUBuffer between = is_one ? new_buffer(whole, WGPUBufferUsage_CopySrc | WGPUBufferUsage_CopyDst) : source->buffer;
  end_pass();
  if (is_one) gpu.CommandEncoderCopyBufferToBuffer(recording(), source->buffer, start, between, 0, whole);
  gpu.CommandEncoderCopyBufferToBuffer(recording(), between, is_one ? 0 : start, target->buffer, at, whole);
  if (is_one) gpu.BufferRelease(between);
  return told();
}

/* From anywhere to anywhere, after what was launched before; what the host reads is there when it is back. */
EXPORT int32_t cupola_copy(void *to, const void *from, int64_t bytes) {
  cupola_begin();
  const int32_t code = copy(to, from, bytes);
  cupola_end();
  return code;
}

EXPORT int32_t cupola_clear(void *address, int64_t bytes) {
  uint64_t offset;
  cupola_begin();
  const Memory *memory = memory_of(address, &offset);
  const int is_right = memory && is_in_words(memory, offset, bytes);
  end_pass();
  if (is_right && bytes) gpu.CommandEncoderClearBuffer(recording(), memory->buffer, offset, in_words(bytes));
  const int32_t code = is_right ? told() : broke(BAD_ADDRESS, "WebGPU clears whole words of 4 bytes, within one tensor");
  cupola_end();
  return code;
}

/* Bytes of memory: those that are free, all, and those that one tensor may have. WebGPU tells the last alone: memory is taken for the host's, as
   it is of most laptops. */
EXPORT int32_t cupola_memory(int64_t *bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  bytes[0] = page * sysconf(_SC_AVPHYS_PAGES), bytes[1] = page * sysconf(_SC_PHYS_PAGES), bytes[2] = (int64_t)limits.maxStorageBufferBindingSize;
  return 0;
}

static int32_t fault(int32_t index, const char *what) { return failed(BAD_LAUNCH, shaders[index].name, text(what)); }

/* Places the launch's tensors and numbers; WebGPU has one state of a buffer during a launch, written or only read. */
static int32_t place(int32_t index, void **arguments, WGPUBindGroupEntry *entries, size_t *count, uint32_t *numbers_given, uint32_t *num_numbers) {
  for (int32_t i = 0; shaders[index].arguments[i]; ++i) {
    const char kind = shaders[index].arguments[i];
    uint64_t offset;
    if (kind == 'l') numbers_given[(*num_numbers)++] = (uint32_t)*(int64_t *)arguments[i];
    else if (kind == 'i') numbers_given[(*num_numbers)++] = *(uint32_t *)arguments[i];
    else {
      const Memory *memory = memory_of(*(void **)arguments[i], &offset);
      if (!memory) return fault(index, "a tensor is not of the device's memory");
      if (offset % limits.minStorageBufferOffsetAlignment || offset >= memory->bytes) return fault(index, "a tensor begins where none may");
      entries[*count] = (WGPUBindGroupEntry){.binding = (uint32_t)*count, .buffer = memory->buffer, .offset = offset, .size = in_words(memory->bytes - offset)};
      ++*count;
    }
  }
  return 0;
}

int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes) {
  const int64_t most = limits.maxComputeWorkgroupsPerDimension, rows = (extents[0] + most - 1) / most;
  WGPUBindGroupEntry entries[MAX_ARGUMENTS];
  uint32_t given[MAX_ARGUMENTS], num_given = 0;
  size_t count = 0;
  (void)shared_bytes;
  if (extents[1] > most || rows > most || extents[2] != 1) return fault(index, "WebGPU has no launches of so many blocks");
  int32_t code = place(index, arguments, entries, &count, given, &num_given);
  if (code) return code;
  given[num_given++] = (uint32_t)extents[0] - 1; /* the last block: those along x lie in rows along z */
  const uint64_t bytes = (num_given * sizeof *given + 15) / 16 * 16, step = limits.minUniformBufferOffsetAlignment;
  uint64_t at = (numbers_end + step - 1) / step * step;
  if (at + bytes > NUMBERS_BYTES) {
    if ((code = submit())) return code;
    at = 0;
  }
  memcpy(numbers_here + at, given, num_given * sizeof *given);
  numbers_end = at + bytes;
  entries[count] = (WGPUBindGroupEntry){.binding = (uint32_t)count, .buffer = numbers, .offset = at, .size = bytes};
  const WGPUBindGroupDescriptor described = {.label = text(shaders[index].name), .layout = kernels[index].layout, .entryCount = count + 1, .entries = entries};
  const WGPUBindGroup group = gpu.DeviceCreateBindGroup(device, &described);
  if (error) return told();
  if (!pass) pass = gpu.CommandEncoderBeginComputePass(recording(), NULL);
  gpu.ComputePassEncoderSetPipeline(pass, kernels[index].pipeline);
  gpu.ComputePassEncoderSetBindGroup(pass, 0, group, 0, NULL);
  gpu.ComputePassEncoderDispatchWorkgroups(pass, (uint32_t)(rows > 1 ? most : extents[0]), (uint32_t)extents[1], (uint32_t)rows);
  gpu.BindGroupRelease(group);
  return told();
}

/* A constant's place in the device's memory; it is brought there when it is first asked for. */
void *cupola_hold(void **held, const void *constant, int64_t bytes) {
  if (!*held) {
    void *memory = allocate(bytes);
    if (memory && !copy(memory, constant, bytes)) *held = memory;
  }
  return *held;
}

typedef int32_t (*Step)(const int64_t *dims, void *const *inputs, char *workspace);

int32_t cupola_step(Step step, const int64_t *dims, int64_t num_dims, void *const *inputs, int64_t num_inputs, char *workspace) {
  (void)num_dims, (void)num_inputs;
  const int32_t code = step(dims, inputs, workspace);
  return code ? code : submit();
}
