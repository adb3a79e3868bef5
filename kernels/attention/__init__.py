"""Attention for decoding: one query a sequence against its cached keys and values."""

from kernels.attention.decode import attention_step

__all__ = ["attention_step"]
