"""What follows the mLSTM cell, in one pass: LayerNorm over each head, a weight, and a sigmoid output gate.

    x_hat = (h - mean) / sqrt(var + eps)  over the V channels of a head;    y = x_hat weight sigmoid(o)

The mean is subtracted and there is no bias, as in the models of arXiv:2510.02228. x_hat is rounded to the
dtype of h before the weight multiplies it, as their code does. With g = dy weight sigmoid(o), the gradients
are

    dh = (g - mean(g) - x_hat mean(g x_hat)) / sqrt(var + eps)
    do = g x_hat (1 - sigmoid(o))            dweight = sum over tokens of dy x_hat sigmoid(o)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import choose_backend


def mlstm_norm_gate(
    h: Tensor, o: Tensor, weight: Tensor, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """y (B, S, H, V) in the dtype of h, from h and o, the pre-activation of the output gate, of that shape.

    `weight` has H V entries, (H, V) or flat. Reductions in float32, or in float64 if h is. `backend` as in
    `kernels.backends`. Saves its inputs alone for the backward pass.

    Raises:
        ValueError: shapes that do not fit, by name.
    """
    if h.ndim != 4:
        raise ValueError(f"h has shape {tuple(h.shape)}: must be (B, S, H, V)")
    if o.shape != h.shape:
        raise ValueError(f"o has shape {tuple(o.shape)}: must be that of h, {tuple(h.shape)}")
    if weight.numel() != h.shape[-2] * h.shape[-1]:
        raise ValueError(f"weight has {weight.numel()} entries: must have H V = {h.shape[-2] * h.shape[-1]}")
    return _norm_gate(h, o, weight, eps, backend)


def normalise_heads(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm over the last dimension of x (..., H, V), rounded to `dtype`, times the weight; x's dtype."""
    normal = F.layer_norm(x, x.shape[-1:], eps=eps).to(dtype).to(x.dtype)
    return normal * weight.to(x.dtype).view(x.shape[-2:])


@torch.library.custom_op("isoflop::mlstm_norm_gate", mutates_args=())
def _norm_gate(h: Tensor, o: Tensor, weight: Tensor, eps: float, backend: str | None) -> Tensor:
    if choose_backend(backend, h.device) == "triton":
        from kernels.mlstm.norm_gate_triton import launch_forward

        return launch_forward(h, o, weight, eps)
    with torch.autocast(h.device.type, enabled=False):
        wide = h.to(_wide(h))
        y = normalise_heads(wide, weight, eps, h.dtype) * o.to(wide.dtype).sigmoid()
    return y.to(h.dtype).contiguous()


@_norm_gate.register_fake
def _(h: Tensor, o: Tensor, weight: Tensor, eps: float, backend: str | None) -> Tensor:
    return h.new_empty(h.shape)


@torch.library.custom_op("isoflop::mlstm_norm_gate_backward", mutates_args=())
def _norm_gate_backward(
    dy: Tensor, h: Tensor, o: Tensor, weight: Tensor, eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    if choose_backend(backend, h.device) == "triton":
        from kernels.mlstm.norm_gate_triton import launch_backward

        return launch_backward(dy, h, o, weight, eps)
    with torch.autocast(h.device.type, enabled=False):
        wide = _wide(h)
        x, dy, gate = h.to(wide), dy.to(wide), o.to(wide).sigmoid()
        gain = weight.to(wide).view(h.shape[-2:])
        x = x - x.mean(-1, keepdim=True)
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        x = x * scale
        g = dy * gain * gate
        dh = scale * (g - g.mean(-1, keepdim=True) - x * (g * x).mean(-1, keepdim=True))
        do = g * x * (1 - gate)
        dweight = (dy * x * gate).sum((0, 1))
    return (
        dh.to(h.dtype).contiguous(),
        do.to(o.dtype).contiguous(),
        dweight.to(weight.dtype).view(weight.shape),
    )


@_norm_gate_backward.register_fake
def _(
    dy: Tensor, h: Tensor, o: Tensor, weight: Tensor, eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), o.new_empty(o.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, o, weight, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(h, o, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dh, do, dweight = _norm_gate_backward(dy, *ctx.saved_tensors, ctx.eps, ctx.backend)
    return dh, do, dweight, None, None


_norm_gate.register_autograd(_backward, setup_context=_setup_context)


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)
