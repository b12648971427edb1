"""What is measured on a GPU beside the benchmark: ceilings, each kernel's share of them, and where kernels pay."""
