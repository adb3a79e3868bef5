"""Triton kernels, their PyTorch references, and the operators that choose between them."""
