"""Kernels in C and Triton, their wrappers, and which of them are in use."""
