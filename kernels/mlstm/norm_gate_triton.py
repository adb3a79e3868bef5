# mypy: disable-error-code="no-untyped-def"
"""LayerNorm per head with output gate on a GPU: each input read once and each output written once, each way.

A program owns a block of tokens of one head, so the weight is one vector; in the backward pass it walks
over several blocks, of which the next ones are on their way while it computes, and keeps its share of dweight
in registers, a sum for every row of a block. The partial sums are added in a fixed order: the result is
deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"""Of h a program at a time, forward: 16 a thread, and several programs on a multiprocessor."""

WALKED = 1024
"""Backward: 8 a thread, which then takes 64 registers or few more: eight programs share a multiprocessor."""

PROGRAMS = 1024
"""Of the backward pass: about eight for each multiprocessor, all at the same time."""

STAGES = 3
"""Blocks on their way to a program of the backward pass, and at hand."""

WARPS = 4


def launch_forward(h: Tensor, o: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Arguments as `mlstm_norm_gate`, checked."""
    y = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    if y.numel() == 0:
        return y
    h, o = _by_token(h), _by_token(o)
    tokens, heads, width = h.shape
    block = block_v(width)
    rows = block_rows(width, ELEMENTS)
    _forward_kernel[(heads * triton.cdiv(tokens, rows),)](
        h, o, weight.contiguous(), y, *h.stride()[:2], *o.stride()[:2], tokens, heads, width, eps,
        BLOCK_T=rows, BLOCK_V=block, num_warps=WARPS,
    )  # fmt: skip
    return y


def launch_backward(
    dy: Tensor, h: Tensor, o: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, o and the weight, in their dtypes."""
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    do = torch.empty(o.shape, dtype=o.dtype, device=o.device)
    if dh.numel() == 0:
        return dh, do, torch.zeros_like(weight)
    dy, h, o = _by_token(dy), _by_token(h), _by_token(o)
    tokens, heads, width = h.shape
    rows = block_rows(width, WALKED)
    walkers = min(triton.cdiv(tokens, rows), triton.cdiv(PROGRAMS, heads))
    partial = torch.empty(walkers, heads * width, dtype=torch.float32, device=h.device)
    _backward_kernel[(heads * walkers,)](
        dy, h, o, weight.contiguous(), dh, do, partial,
        *dy.stride()[:2], *h.stride()[:2], *o.stride()[:2], tokens, heads, width, eps, walkers,
        BLOCK_T=rows, BLOCK_V=block_v(width), STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return dh, do, partial.sum(0).to(weight.dtype).view(weight.shape)


def block_v(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def block_rows(width: int, elements: int) -> int:
    return max(1, elements // block_v(width))


def _by_token(x: Tensor) -> Tensor:
    """(B, S, H, V) to (B S, H, V), a view wherever strides allow it."""
    x = x.flatten(0, 1)
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _normalise(x, in_v, width, eps):
    """(x - mean) / sqrt(var + eps) over the last axis, and that reciprocal root; zero in the padding."""
    x = tl.where(in_v[None, :], x - (tl.sum(x, axis=1) / width)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)
    return x * scale[:, None], scale


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    h, o, weight, y,
    h_token, h_head, o_token, o_head, tokens, heads, width, eps,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    t = (tl.program_id(0) // heads).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    vs = tl.arange(0, BLOCK_V)
    in_v = vs < width
    inside = (t < tokens)[:, None] & in_v[None, :]
    x = tl.load(h + t[:, None] * h_token + head * h_head + vs[None, :], mask=inside, other=0.0)
    gate = tl.load(o + t[:, None] * o_token + head * o_head + vs[None, :], mask=inside, other=0.0)
    gain = tl.load(weight + head * width + vs, mask=in_v, other=0.0).to(tl.float32)
    dtype = h.dtype.element_ty
    x, _ = _normalise(x.to(tl.float32), in_v, width, eps)
    x = x.to(dtype).to(tl.float32) * gain[None, :] * tl.sigmoid(gate.to(tl.float32))
    tl.store(y + (t[:, None] * heads + head) * width + vs[None, :], x.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["tokens", "walkers"])
def _backward_kernel(
    dy, h, o, weight, dh, do, partial,
    dy_token, dy_head, h_token, h_head, o_token, o_head, tokens, heads, width, eps, walkers,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    walker = (tl.program_id(0) // heads).to(tl.int64)
    vs = tl.arange(0, BLOCK_V)
    in_v = vs < width
    gain = tl.load(weight + head * width + vs, mask=in_v, other=0.0).to(tl.float32)
    dgain = tl.zeros([BLOCK_T, BLOCK_V], dtype=tl.float32)
    for block in tl.range(walker, tl.cdiv(tokens, BLOCK_T), walkers, num_stages=STAGES):
        t = block * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
        inside = (t < tokens)[:, None] & in_v[None, :]
        x = tl.load(h + t[:, None] * h_token + head * h_head + vs[None, :], mask=inside, other=0.0)
        gate = tl.load(o + t[:, None] * o_token + head * o_head + vs[None, :], mask=inside, other=0.0)
        g = tl.load(dy + t[:, None] * dy_token + head * dy_head + vs[None, :], mask=inside, other=0.0)
        x, scale = _normalise(x.to(tl.float32), in_v, width, eps)
        gate = tl.sigmoid(gate.to(tl.float32))
        g = g.to(tl.float32) * gate
        dgain += g * x
        g *= gain[None, :]
        mean = tl.sum(g, axis=1) / width
        slope = tl.sum(g * x, axis=1) / width
        out = (t[:, None] * heads + head) * width + vs[None, :]
        dx = scale[:, None] * (g - mean[:, None] - x * slope[:, None])
        tl.store(dh + out, dx.to(dh.dtype.element_ty), mask=inside)
        tl.store(do + out, (g * x * (1.0 - gate)).to(do.dtype.element_ty), mask=inside)
    tl.store(partial + (walker * heads + head) * width + vs, tl.sum(dgain, axis=0), mask=in_v)
