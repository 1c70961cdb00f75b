/* The runtime over AMD's driver: hip_runtime_api.h's functions as libamdhip64.so exports them, of ROCm 6 or later. */

#define VENDOR "AMD"
#define LIBRARIES "libamdhip64.so.7", "libamdhip64.so.6", "/opt/rocm/lib/libamdhip64.so", "libamdhip64.so"
#define FUNCTIONS(F) \
  F(init, "hipInit", (unsigned)) \
  F(getErrorString, "hipDrvGetErrorString", (Status, const char **)) \
  F(setDevice, "hipSetDevice", (int)) \
  F(moduleLoadData, "hipModuleLoadData", (Handle *, const void *)) \
  F(moduleGetFunction, "hipModuleGetFunction", (Handle *, Handle, const char *)) \
  F(streamCreate, "hipStreamCreateWithFlags", (Handle *, unsigned)) \
  F(streamSynchronize, "hipStreamSynchronize", (Handle)) \
  F(launchKernel, "hipModuleLaunchKernel", \
    (Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **)) \
  F(memAlloc, "hipMalloc", (Address *, size_t)) \
  F(memFree, "hipFree", (Address)) \
  F(memGetInfo, "hipMemGetInfo", (size_t *, size_t *)) \
  F(memcpyAsync, "hipMemcpyAsync", (Address, Address, size_t, int, Handle)) \
  F(memsetD8Async, "hipMemsetD8Async", (Address, unsigned char, size_t, Handle)) \
  F(streamBeginCapture, "hipStreamBeginCapture", (Handle, int)) \
  F(streamEndCapture, "hipStreamEndCapture", (Handle, Handle *)) \
  F(graphInstantiate, "hipGraphInstantiateWithFlags", (Handle *, Handle, unsigned long long)) \
  F(graphLaunch, "hipGraphLaunch", (Handle, Handle)) \
  F(graphDestroy, "hipGraphDestroy", (Handle)) \
  F(graphExecDestroy, "hipGraphExecDestroy", (Handle))

#include "runtime.h"

enum { FIRST = 0, BY_ADDRESSES = 4 }; /* hipMemcpyDefault: each address tells whose it is */

static int32_t find_device(void) {
  CHECK(use_device());
  return 0;
}

static Status use_device(void) { return setDevice(FIRST); }

static Status copy(Address to, Address from, size_t bytes) { return memcpyAsync(to, from, bytes, BY_ADDRESSES, stream); }

static Status allow_shared(Handle function, unsigned bytes) { return (void)function, (void)bytes, 0; } /* a launch says it */
