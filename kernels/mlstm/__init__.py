"""The mLSTM cell: sequence and decode-step operators, their reference and their Triton kernels."""

from kernels.mlstm.sequence import mlstm

__all__ = ["mlstm"]
