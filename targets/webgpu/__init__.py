"""Any machine's GPU through WebGPU: Vulkan, Metal or Direct3D 12 below it."""
