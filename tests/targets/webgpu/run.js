// Runs launches in a page, each tensor in a buffer of its own, and gives what they leave in one of them, in base64.
//
// kernels: by name {code, bindings}; launches: {kernel, tensors: [index …], numbers: [int …], blocks: [x, y]}; tensors: {bytes, data: base64 or null}.
async ({kernels, launches, tensors, result}) => {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("there is no adapter");
  const device = await adapter.requestDevice({requiredLimits: {
    maxStorageBuffersPerShaderStage: adapter.limits.maxStorageBuffersPerShaderStage,
    maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
  }});
  device.pushErrorScope("validation");
  const {STORAGE, UNIFORM, COPY_SRC, COPY_DST, MAP_READ} = GPUBufferUsage;
  const create = (size, usage) => device.createBuffer({size: Math.ceil(size / 16) * 16, usage});
  const buffers = tensors.map(({bytes, data}) => {
    const buffer = create(bytes, STORAGE | COPY_SRC | COPY_DST);
    if (data) device.queue.writeBuffer(buffer, 0, Uint8Array.from(atob(data), c => c.charCodeAt(0)));
    return buffer;
  });
  const pipelines = {};
  for (const [name, code] of Object.entries(kernels)) {
    const module = device.createShaderModule({code});
    const messages = (await module.getCompilationInfo()).messages.filter(message => message.type == "error");
    if (messages.length) throw new Error(name + ": " + messages.map(message => message.message).join("; "));
    pipelines[name] = device.createComputePipeline({layout: "auto", compute: {module, entryPoint: name}});
  }
  const encoder = device.createCommandEncoder();
  for (const {kernel, tensors, numbers, blocks} of launches) {
    const uniform = create(4 * numbers.length, UNIFORM | COPY_DST);
    device.queue.writeBuffer(uniform, 0, new Int32Array(numbers));
    // A page may bind memory that a shader could write to once; where a kernel reads a tensor under several names, copies stand in.
    const bound = tensors.map((index, i) => {
      if (!tensors.includes(index, i + 1)) return buffers[index];
      const copy = create(buffers[index].size, STORAGE | COPY_DST);
      encoder.copyBufferToBuffer(buffers[index], 0, copy, 0, buffers[index].size);
      return copy;
    });
    const entries = [...bound, uniform].map((buffer, binding) => ({binding, resource: {buffer}}));
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipelines[kernel]);
    pass.setBindGroup(0, device.createBindGroup({layout: pipelines[kernel].getBindGroupLayout(0), entries}));
    pass.dispatchWorkgroups(...blocks);
    pass.end();
  }
  const size = buffers[result].size, read = create(size, MAP_READ | COPY_DST);
  encoder.copyBufferToBuffer(buffers[result], 0, read, 0, size);
  device.queue.submit([encoder.finish()]);
  const error = await device.popErrorScope();
  if (error) throw new Error(error.message);
  await read.mapAsync(GPUMapMode.READ);
  return btoa(Array.from(new Uint8Array(read.getMappedRange()), byte => String.fromCharCode(byte)).join(""));
}
