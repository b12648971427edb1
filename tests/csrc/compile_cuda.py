"""Compiles the library with its CUDA kernels, whatever torch is here, loads it, and reads what ptxas and SASS tell.

``python tests/csrc/compile_cuda.py [OUT]``; fails on spills, on local memory, and where a kernel misses what its header
comment promises.
"""
