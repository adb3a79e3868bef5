"""Both kernels on tensors: what they read and write, and with which constants they are launched."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels.slstm.configs import ROWS, SLSTMKernelConfig, padded_width
from kernels.slstm.triton_kernels import backward_kernel, forward_kernel


class Saved(NamedTuple):
    """What the backward pass reads, (B, S, H, D) each, or empty."""

    a: Tensor
    """Weight of the step in the average (float32); without a normaliser, the forget gate."""
    u: Tensor
    """The average after the step; without a normaliser c, in float32, as the gradient of tanh needs it."""
    z: Tensor
    o: Tensor
    not_f: Tensor
    """sigmoid(-f)"""
    w: Tensor
    """sigmoid(-i) under a sigmoid input gate, else exp(i); empty where no gradient needs it."""


def saved_like(x: Tensor, saves: bool, sigmoid: bool, normaliser: bool) -> Saved:
    """Empty tensors, of no elements where nothing is kept."""
    batch, length, _, heads, width = x.shape
    shape = (batch, length, heads, width) if saves else (0,)
    single = x.new_empty(shape, dtype=torch.float32)
    z, o, not_f = (x.new_empty(shape) for _ in range(3))
    u = torch.empty_like(single) if not normaliser else x.new_empty(shape)
    w = x.new_empty(shape if _writes(sigmoid, normaliser) else (0,))
    return Saved(single, u, z, o, not_f, w)


def forward(
    x: Tensor,
    R: Tensor | None,
    b: Tensor,
    state: tuple[Tensor, Tensor, Tensor] | None,
    sigmoid: bool,
    normaliser: bool,
    saves: bool,
    config: SLSTMKernelConfig,
) -> tuple[Tensor, Tensor, Tensor, Saved]:
    """h and the final u, L; R in the dtype of x, b and the state in float32, all of them contiguous."""
    batch, length, _, heads, width = x.shape
    h = x.new_empty(batch, length, heads, width)
    u1 = x.new_empty(batch, heads, width, dtype=torch.float32)
    L1 = torch.empty_like(u1)
    saved = saved_like(x, saves, sigmoid, normaliser)
    blocks, constants = _layout(x, R, state is not None, sigmoid, normaliser, config)
    wide = padded_width(width)
    buffer = x.new_empty(blocks * 2 * ROWS * wide if not config.chip else 1)
    y0, u0, L0 = state or (u1, u1, u1)
    forward_kernel[(blocks,)](
        x, x if R is None else R, b, y0, u0, L0, h, u1, L1, *saved, buffer,
        batch, length, heads, width, *x.stride()[:4],
        SAVES=saves, num_warps=config.warps, **constants,
    )  # fmt: skip
    return h, u1, L1, saved


def backward(
    dh: Tensor,
    du1: Tensor,
    dL1: Tensor,
    R: Tensor | None,
    y0: Tensor | None,
    u0: Tensor | None,
    h: Tensor,
    saved: Saved,
    sigmoid: bool,
    normaliser: bool,
    config: SLSTMKernelConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dR, db, and the gradients of the first state."""
    batch, length, heads, width = h.shape
    dx = h.new_empty(batch, length, 4, heads, width)
    first = [torch.empty_like(du1) for _ in range(3)]
    blocks, constants = _layout(dx, R, u0 is not None, sigmoid, normaliser, config)
    wide = padded_width(width)
    buffer = h.new_empty(blocks * 8 * ROWS * wide if not config.chip else 1)
    backward_kernel[(blocks,)](
        dh, du1, dL1, dx if R is None else R, du1 if u0 is None else u0, *saved, dx, *first, buffer,
        batch, length, heads, width, num_warps=config.warps, **constants,
    )  # fmt: skip
    db = dx.sum((0, 1), dtype=torch.float32).transpose(0, 1).contiguous()
    dR = h.new_empty(0) if R is None else recurrent_gradient(h, y0, dx)
    return dx, dR, db, first[0], first[1], first[2]


def recurrent_gradient(h: Tensor, y0: Tensor | None, dx: Tensor) -> Tensor:
    """Of R (H, D, 4, D): one product over all tokens, of what each read and what its gates wanted."""
    first = torch.zeros_like(h[:, 0]) if y0 is None else y0.to(h.dtype)
    past = torch.cat([first[:, None], h[:, :-1]], 1)
    return torch.einsum("bshd,bsghe->hdge", past, dx).contiguous()


def _writes(sigmoid: bool, normaliser: bool) -> bool:
    return sigmoid or not normaliser


def _layout(
    x: Tensor,
    R: Tensor | None,
    starts: bool,
    sigmoid: bool,
    normaliser: bool,
    config: SLSTMKernelConfig,
) -> tuple[int, dict[str, object]]:
    """Number of programs, constants."""
    batch, _, _, heads, width = x.shape
    wide = padded_width(width)
    return heads * triton.cdiv(batch, ROWS), {
        "ROWS": ROWS,
        "WIDTH": wide,
        "SLICE": min(config.slice, wide),
        "CHIP": config.chip,
        "MIXES": R is not None,
        "STARTS": starts,
        "SIGMOID": sigmoid,
        "NORMALISER": normaliser,
        "WRITES": _writes(sigmoid, normaliser),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_stages": 1,
    }
