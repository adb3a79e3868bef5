"""SwiGLU of a training, between the two products of a feed-forward layer: operator and Triton kernels."""

from kernels.swiglu.operator import swiglu

__all__ = ["swiglu"]
