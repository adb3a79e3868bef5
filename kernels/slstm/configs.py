"""How the Triton kernels may be laid out, best first; `check` takes the first that is right here."""

from dataclasses import dataclass

import torch

ROWS = 16
"""Sequences of a program: the least that the matrix units multiply."""
MAX_WIDTH = 512
CHIP_WIDTH = 128
"""Widest head whose recurrent weights stay in shared memory, in 16 bits: 128 KiB of 227."""


@dataclass(frozen=True, kw_only=True)
class SLSTMKernelConfig:
    """One layout of both kernels."""

    name: str
    chip: bool
    """Recurrent weights stay on the chip."""
    warps: int
    slice: int = 32
    """Rows of the recurrent weights that are read at once where they do not stay."""


CHIP = (
    SLSTMKernelConfig(name="chip-8", chip=True, warps=8),
    SLSTMKernelConfig(name="chip-16", chip=True, warps=16),
    SLSTMKernelConfig(name="chip-4", chip=True, warps=4),
)
STREAM = (
    SLSTMKernelConfig(name="stream-8", chip=False, warps=8),
    SLSTMKernelConfig(name="stream-4", chip=False, warps=4, slice=16),
)
WIDE = SLSTMKernelConfig(name="stream-16", chip=False, warps=16)


def candidates(dtype: torch.dtype, width: int) -> tuple[SLSTMKernelConfig, ...]:
    """For a dtype of x and a width of heads. Products of float32 are exact ones, and too slow to keep on the
    chip what 16 bits keep there."""
    fits = dtype.itemsize == 2 and width <= CHIP_WIDTH
    stream = STREAM if width <= CHIP_WIDTH else (WIDE, *STREAM)
    return (*CHIP, *stream) if fits else stream


def padded_width(width: int) -> int:
    """The power of two, at least 16, that a program computes on."""
    return max(16, 1 << (width - 1).bit_length())
