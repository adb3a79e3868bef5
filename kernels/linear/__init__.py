"""Linear maps of one token a sequence, with what stands before and after them: norm, SwiGLU, residual."""

from kernels.linear.skinny import add_norm, read_out, rotate_pairs, skinny_linear, swiglu

__all__ = ["add_norm", "read_out", "rotate_pairs", "skinny_linear", "swiglu"]
