"""Sparse and int8 products for the CPU (numba) and the GPU (Triton), behind the interface in `sparse`."""
