/* The runtime over NVIDIA's driver: cuda.h's functions by the names that libcuda.so exports. Of two versions of a function, cuda.h means the
   later one. */

#define VENDOR "NVIDIA"
#define LIBRARIES "libcuda.so.1"
#define FUNCTIONS(F) \
  F(init, "cuInit", (unsigned)) \
  F(getErrorString, "cuGetErrorString", (Status, const char **)) \
  F(deviceGet, "cuDeviceGet", (int *, int)) \
  F(devicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (Handle *, int)) \
  F(ctxSetCurrent, "cuCtxSetCurrent", (Handle)) \
  F(moduleLoadData, "cuModuleLoadData", (Handle *, const void *)) \
  F(moduleGetFunction, "cuModuleGetFunction", (Handle *, Handle, const char *)) \
  F(funcSetAttribute, "cuFuncSetAttribute", (Handle, int, int)) \
  F(streamCreate, "cuStreamCreate", (Handle *, unsigned)) \
  F(streamSynchronize, "cuStreamSynchronize", (Handle)) \
  F(launchKernel, "cuLaunchKernel", \
    (Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **)) \
  F(memAlloc, "cuMemAlloc_v2", (Address *, size_t)) \
  F(memFree, "cuMemFree_v2", (Address)) \
  F(memGetInfo, "cuMemGetInfo_v2", (size_t *, size_t *)) \
  F(memcpyAsync, "cuMemcpyAsync", (Address, Address, size_t, Handle)) \
  F(memsetD8Async, "cuMemsetD8Async", (Address, unsigned char, size_t, Handle)) \
  F(streamBeginCapture, "cuStreamBeginCapture_v2", (Handle, int)) \
  F(streamEndCapture, "cuStreamEndCapture", (Handle, Handle *)) \
  F(graphInstantiate, "cuGraphInstantiateWithFlags", (Handle *, Handle, unsigned long long)) \
  F(graphLaunch, "cuGraphLaunch", (Handle, Handle)) \
  F(graphDestroy, "cuGraphDestroy", (Handle)) \
  F(graphExecDestroy, "cuGraphExecDestroy", (Handle))

#include "runtime.h"

enum { STATIC_SHARED_BYTES = 48 << 10, MAX_DYNAMIC_SHARED = 8 };

static Handle context;

static int32_t find_device(void) {
  int device;
  CHECK(deviceGet(&device, 0));
  CHECK(devicePrimaryCtxRetain(&context, device));
  CHECK(use_device());
  return 0;
}

static Status use_device(void) { return ctxSetCurrent(context); }

static Status copy(Address to, Address from, size_t bytes) { return memcpyAsync(to, from, bytes, stream); }

static Status allow_shared(Handle function, unsigned bytes) {
  return bytes > STATIC_SHARED_BYTES ? funcSetAttribute(function, MAX_DYNAMIC_SHARED, (int)bytes) : 0;
}
