"""What GPUs have shown, by compute capability and dtype: `python -m benchmarks.gpu.crossover` writes this file anew.

Up to which size CUDA kernels are ahead of the library's products with passes around them.
"""

import torch

# The widest layer of fully connected networks; elsewhere WIDEST_BY_COUNT in mlp.py.
WIDTHS: dict[tuple[int, int], dict[torch.dtype, int]] = {}

# The most channels of convolutions; elsewhere none. By bytes and operations (csrc/cuda/conv.cuh) they can only be ahead
# of cuDNN where that is far from its best.
CHANNELS: dict[tuple[int, int], dict[torch.dtype, int]] = {}
