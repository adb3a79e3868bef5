"""SwiGLU with gradients, of two halves that come side by side from one product and go back into one.

    y = silu(g) u    x = (g, u)    s = sigmoid(g)        dg = dy u (s + g s (1 - s))    du = dy g s

Differentiated as written, dx is a concatenation. A compiler fuses that by computing both gradients for every
element of dx and keeping one; here each is computed once, from one read of dy, g and u.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import choose_backend


def swiglu(x: Tensor, backend: str | None = None) -> Tensor:
    """y (..., N) in the dtype of x (..., 2 N): silu of the first half times the second. Saves x alone.

    In float32, or in float64 if x is, and rounded once. `backend` as in `kernels.backends`; float64 always
    takes the reference.

    Raises:
        ValueError: an x that has no two halves.
    """
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: the last dimension must be even")
    return _swiglu(x, backend)


@torch.library.custom_op("isoflop::swiglu", mutates_args=())
def _swiglu(x: Tensor, backend: str | None) -> Tensor:
    if _in_triton(x, backend):
        from kernels.swiglu.triton_kernels import launch_forward

        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return launch_forward(x)
    gate, up = _wide(x).chunk(2, -1)
    return (F.silu(gate) * up).to(x.dtype)


@_swiglu.register_fake
def _(x: Tensor, backend: str | None) -> Tensor:
    return x.new_empty(_half(x))


@torch.library.custom_op("isoflop::swiglu_backward", mutates_args=())
def _swiglu_backward(dy: Tensor, x: Tensor, backend: str | None) -> Tensor:
    if _in_triton(x, backend):
        from kernels.swiglu.triton_kernels import launch_backward

        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return launch_backward(dy, x)
    gate, up = _wide(x).chunk(2, -1)
    wide, share = _wide(dy), gate.sigmoid()
    dgate = wide * up * (share + gate * share * (1 - share))
    return torch.cat([dgate, wide * gate * share], -1).to(x.dtype)


@_swiglu_backward.register_fake
def _(dy: Tensor, x: Tensor, backend: str | None) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return _swiglu_backward(dy, *ctx.saved_tensors, ctx.backend), None


_swiglu.register_autograd(_backward, setup_context=_setup_context)


def _in_triton(x: Tensor, backend: str | None) -> bool:
    return x.dtype != torch.float64 and choose_backend(backend, x.device) == "triton"


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _half(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-1] // 2)
