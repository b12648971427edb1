// What this library's own CUDA runtime finds here.

#pragma once

namespace gradreg_fast::cuda {

// Why no kernel can run on this machine; empty if one can.
const char* problem();

// Makes a device the current one of the calling thread: this library's runtime is its own, PyTorch's another.
void use_device(int index);

}  // namespace gradreg_fast::cuda
