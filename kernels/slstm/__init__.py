"""The sLSTM cell: its operator, reference and Triton kernels."""

from kernels.slstm.operator import slstm
from kernels.slstm.reference import State

__all__ = ["State", "slstm"]
