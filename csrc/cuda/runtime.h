// What this library's own CUDA runtime finds here.

#pragma once

namespace gradreg_fast::cuda {

// Why no kernel can run on this machine; empty if one can.
const char* problem();

}  // namespace gradreg_fast::cuda
