# mypy: disable-error-code="no-untyped-def"
"""SwiGLU and its gradients on a GPU: each input read once and each output written once, each way.

A program owns a block of channels of one token, those of a token being neighbours in time: 16 bytes a thread
of every tensor, and little else, so that many programs have their loads under way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
WARPS = 4


def launch_forward(x: Tensor) -> Tensor:
    """y (..., N) of x (..., 2 N)."""
    rows, width = _rows(x)
    y = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if y.numel():
        block, blocks = _blocks(width)
        _swiglu_kernel[(len(rows) * blocks,)](
            rows, y, rows.stride(0), width, blocks, BLOCK=block, num_warps=WARPS
        )
    return y


def launch_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dx (..., 2 N), contiguous."""
    rows, width = _rows(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if dx.numel():
        dys, _ = _rows(dy)
        block, blocks = _blocks(width)
        _swiglu_backward_kernel[(len(rows) * blocks,)](
            dys, rows, dx, dys.stride(0), rows.stride(0), width, blocks, BLOCK=block, num_warps=WARPS
        )
    return dx


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """(rows, channels), a view wherever strides allow it; and half the channels."""
    x = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(0, 0)
    return x if x.stride(-1) == 1 else x.contiguous(), x.shape[-1] // 2


def _blocks(width: int) -> tuple[int, int]:
    block = min(BLOCK, triton.next_power_of_2(width))
    return block, triton.cdiv(width, block)


@triton.jit
def _place(width, blocks, BLOCK: tl.constexpr):
    """The row of a program, its channels, and which of them there are."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channels = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return row, channels, channels < width


@triton.jit
def _swiglu_kernel(x, y, x_row, width, blocks, BLOCK: tl.constexpr):
    row, channels, there = _place(width, blocks, BLOCK)
    gate = tl.load(x + row * x_row + channels, mask=there, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row + width + channels, mask=there, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(y + row * width + channels, product.to(y.dtype.element_ty), mask=there)


@triton.jit
def _swiglu_backward_kernel(dy, x, dx, dy_row, x_row, width, blocks, BLOCK: tl.constexpr):
    row, channels, there = _place(width, blocks, BLOCK)
    slope = tl.load(dy + row * dy_row + channels, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(x + row * x_row + channels, mask=there, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row + width + channels, mask=there, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    dtype = dx.dtype.element_ty
    dgate = slope * up * (share + silu * (1.0 - share))
    tl.store(dx + row * 2 * width + channels, dgate.to(dtype), mask=there)
    tl.store(dx + row * 2 * width + width + channels, (slope * silu).to(dtype), mask=there)
