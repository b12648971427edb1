// What the numbers of a tensor are, for kernels that know nothing of tensors.

#pragma once

namespace gradreg_fast::cuda {

enum class Type : int { Float32, Float64, BFloat16, Float16 };

}  // namespace gradreg_fast::cuda
