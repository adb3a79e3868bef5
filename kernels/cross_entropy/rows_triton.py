# mypy: disable-error-code="no-untyped-def"
"""Losses of rows of logits and, in their place, the gradients: from memory once, to memory once.

A program owns a row and goes over it twice; the second time it comes from the cache. Every lane keeps a
maximum and a sum of its own until the end of the row; under a soft cap the cap does as maximum.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 8


def rows_triton(
    logits: Tensor, targets: Tensor, losses: Tensor, soft_cap: float | None, want_gradient: bool
) -> Tensor:
    """As `rows_reference`, in place; logits with contiguous rows."""
    rows, columns = logits.shape
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        _rows_kernel[(rows,)](
            logits, targets, losses, logits.stride(0), columns, soft_cap or 1.0,
            CAPPED=soft_cap is not None, GRADIENT=want_gradient,
            BLOCK=min(BLOCK, triton.next_power_of_2(columns)), num_warps=WARPS,
        )  # fmt: skip
    return logits


@triton.jit
def _capped(x, cap, CAPPED: tl.constexpr):
    """cap tanh(x / cap), where asked."""
    if CAPPED:
        x = cap - 2 * cap / (1 + tl.exp(x * (2 / cap)))
    return x


@triton.jit
def _rows_kernel(
    logits, targets, losses, stride, columns, cap,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    if CAPPED:
        top = cap
        for start in range(0, columns, BLOCK):
            inside = start + lanes < columns
            z = _capped(tl.load(logits + start + lanes, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
            total += tl.where(inside, tl.exp(z - top), 0.0)
        log_sum = top + tl.log(tl.sum(total, 0))
    else:
        tops = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
        for start in range(0, columns, BLOCK):
            inside = start + lanes < columns
            z = tl.load(logits + start + lanes, mask=inside, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(tops, z)
            # Where a lane has seen nothing yet, the difference of two infinities is not to be taken.
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(tops - safe) + tl.exp(z - safe)
            tops = higher
        top = tl.max(tops, 0)
        log_sum = top + tl.log(tl.sum(total * tl.exp(tops - top), 0))
    at_target = _capped(tl.load(logits + target).to(tl.float32), cap, CAPPED)
    tl.store(losses + row, log_sum - at_target)
    if GRADIENT:
        tl.debug_barrier()  # the target's logit is read before any thread writes over it
        for start in range(0, columns, BLOCK):
            inside = start + lanes < columns
            x = tl.load(logits + start + lanes, mask=inside, other=0.0).to(tl.float32)
            z = _capped(x, cap, CAPPED)
            gradient = tl.exp(z - log_sum) - tl.where(start + lanes == target, 1.0, 0.0)
            if CAPPED:
                share = z / cap
                gradient *= 1 - share * share
            tl.store(logits + start + lanes, gradient.to(logits.dtype.element_ty), mask=inside)
