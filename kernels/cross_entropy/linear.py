"""Head and cross-entropy in one operator that never holds more than a chunk of the logits.

With z = cap tanh(x W^T / cap), or x W^T without a cap, and targets y of T tokens,

    loss = 1/T sum_t (log sum_j exp z_tj - z_t,y)
    dlogits_tj = (softmax(z_t)_j - [j = y_t]) (1 - (z_tj / cap)^2)
    dx = dlogits W / T          dW = dlogits^T x / T

The loss is the end of a training's graph, so a chunk's gradients are taken while its logits are there: the
three products of an ordinary head and no fourth to have the logits again (the idea of arXiv:2410.10989).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.backends import choose_backend
from kernels.cross_entropy.rows import rows_reference

CHUNK_BYTES = 2**29
"""Of logits at once: large products run at full speed, and little memory is held."""
GRANULE = 1024
"""Tokens; a chunk is a multiple where it can be."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    soft_cap: float | None = None,
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean cross-entropy, nats a token, of the head `weight` on `hidden`; differentiable once.

    hidden (T, d), weight (V, d), targets (T,) integers in 0..V-1. Products in the dtype of the inputs, or in
    that of autocast; losses, softmax and the sum of dW over chunks in float32, or in float64 if the inputs
    are. `chunk_tokens` bounds what is held of the logits, by default to CHUNK_BYTES; it changes the order of
    sums alone. `backend` as in `kernels.backends`.

    Raises:
        ValueError: shapes or options that do not fit, by name.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: must be (T, d) and (V, d)"
        )
    if targets.shape != hidden.shape[:1] or targets.numel() == 0:
        raise ValueError(
            f"targets {tuple(targets.shape)}: must be ({hidden.shape[0]},), one a token, not none"
        )
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap = {soft_cap}: must be positive, or None for none")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens = {chunk_tokens}: must be at least 1")
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
    learning = torch.is_grad_enabled()
    loss, _, _ = torch.ops.isoflop.linear_cross_entropy(
        hidden, weight, targets, soft_cap, chunk_tokens or default_chunk(weight.shape[0], dtype), dtype,
        learning and hidden.requires_grad, learning and weight.requires_grad, backend,
    )  # fmt: skip
    return loss


def default_chunk(vocab_size: int, dtype: torch.dtype) -> int:
    """Tokens whose logits take CHUNK_BYTES."""
    tokens = CHUNK_BYTES // (vocab_size * dtype.itemsize)
    return max(1, tokens // GRANULE * GRANULE or tokens)


@torch.library.custom_op("isoflop::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    soft_cap: float | None,
    chunk_tokens: int,
    dtype: torch.dtype,
    want_dhidden: bool,
    want_dweight: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the gradients that are wanted of the sum over tokens, empty otherwise."""
    with torch.autocast(hidden.device.type, enabled=False):
        x, W = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        losses = torch.empty(len(x), dtype=wide, device=x.device)
        dx = torch.empty_like(x) if want_dhidden else x.new_empty(0)
        dW = W.new_zeros(W.shape, dtype=wide) if want_dweight else W.new_empty(0, dtype=wide)
        rows = _rows(backend, x)
        for start in range(0, len(x), chunk_tokens):
            part = slice(start, min(start + chunk_tokens, len(x)))
            logits = x[part] @ W.T
            dlogits = rows(logits, targets[part], losses[part], soft_cap, want_dhidden or want_dweight)
            if want_dhidden:
                torch.mm(dlogits, W, out=dx[part])
            if want_dweight:
                _add_product(dW, dlogits.T, x[part])
    return losses.mean(), dx, dW


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None, chunk_tokens: int,
    dtype: torch.dtype, want_dhidden: bool, want_dweight: bool, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(dtype, torch.float32)
    dx = hidden.new_empty(hidden.shape if want_dhidden else 0, dtype=dtype)
    dW = weight.new_empty(weight.shape if want_dweight else 0, dtype=wide)
    return hidden.new_empty((), dtype=wide), dx, dW


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, *_, ctx.want_dhidden, ctx.want_dweight, _ = inputs
    ctx.dtypes = hidden.dtype, weight.dtype
    ctx.tokens = len(targets)
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    dx, dW = ctx.saved_tensors
    if dloss is None:
        return (None,) * 9
    scale = dloss / ctx.tokens
    dhidden = (dx * scale.to(dx.dtype)).to(ctx.dtypes[0]) if ctx.want_dhidden else None
    dweight = (dW * scale).to(ctx.dtypes[1]) if ctx.want_dweight else None
    return dhidden, dweight, *[None] * 7


_forward.register_autograd(_backward, setup_context=_setup_context)


def _rows(backend: str | None, x: Tensor) -> Any:
    """What turns logits into losses and, in their place, gradients."""
    if x.dtype == torch.float64 or choose_backend(backend, x.device) == "reference":
        return rows_reference
    from kernels.cross_entropy.rows_triton import rows_triton

    return rows_triton


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in the dtype of `total` where a kernel does so; else the product is rounded first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif _adds_wide(total.device, a.dtype):
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:
        total += a @ b


@cache
def _adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of `dtype` can be added to float32 without being rounded first: found by trying."""
    try:
        ones = torch.ones(16, 16, dtype=dtype, device=device)
        total = torch.full((16, 16), 2.0**-10, device=device)
        torch.ops.aten.addmm.dtype_out(total, ones, ones, torch.float32, out=total)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool((total == 16 + 2.0**-10).all())
