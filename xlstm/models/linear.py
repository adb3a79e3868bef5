"""Linear maps of one input in a training on a GPU, with gradients that write and read less than autograd's.

    y_i = x W_i^T        dx = sum_i dy_i W_i        dW_i = dy_i^T x

Left to autograd, each map gives a dx of its own, all of which another kernel reads to sum them, and dW_i is
rounded to the dtype of the products before a pass over it makes a float32 gradient of it. Here every product
is added to the dx of those before it as it leaves the tensor cores, and dW_i leaves them in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_maps(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x (..., K) through each of the weights (N_i, K), as F.linear, under autocast too: each (..., N_i).

    All weights of one dtype, of which their gradients are; dx is summed in that of the products.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
    ys: tuple[Tensor, ...] = _LinearMaps.apply(x.to(dtype), *weights)
    return ys


class _LinearMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        cast = [weight.to(x.dtype) for weight in weights]
        ctx.save_for_backward(x, *cast)
        ctx.dtype = weights[0].dtype
        return tuple(F.linear(x, weight) for weight in cast)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        dx, dweights = _gradients(list(dys), x, weights, ctx.dtype)
        return dx, *dweights


@torch.library.custom_op(
    "isoflop::linear_maps_backward",
    mutates_args=(),
    schema="(Tensor[] dys, Tensor x, Tensor[] weights, ScalarType dtype) -> (Tensor, Tensor[])",
)
def _gradients(
    dys: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """dx like x, and the dW_i in `dtype`."""
    with torch.autocast(x.device.type, enabled=False):
        rows, of_rows = x.flatten(0, -2), [dy.flatten(0, -2) for dy in dys]
        dx = of_rows[0] @ weights[0]
        for dy, weight in zip(of_rows[1:], weights[1:], strict=True):
            dx.addmm_(dy, weight)
        dweights = [_product(dy.T, rows, dtype) for dy in of_rows]
    return dx.view(x.shape), dweights


@_gradients.register_fake
def _(
    dys: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    return x.new_empty(x.shape), [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b in `dtype`; of 16 bits on a GPU not rounded to them first."""
    if a.is_cuda and a.dtype != dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)
