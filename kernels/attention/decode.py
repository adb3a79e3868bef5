"""The attention decode step: one token a sequence, its key and value put into the cache."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kernels.backends import choose_backend
from kernels.shapes import expect_shape

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, backend: str | None = None
) -> Tensor:
    """Attention of one new token a sequence to itself and all before: returns h (B, H, D), extends the cache.

    q, k, v (B, H, D), rotated where positions are; `keys` and `values` (B, H, capacity, D), contiguous;
    `lengths` (B,) int64 on the same device: how many tokens of a sequence are in the cache, below capacity.
    k and v go to that place. What lies behind is never read, so one buffer serves any length. Scores and sums
    are float32 (float64 on the reference if q is); h has the dtype of v. `backend` as in `kernels.backends`.
    No gradient: decoding needs none.

    Raises:
        ValueError: shapes, dtypes or strides that do not fit, by name.
    """
    _check(q, k, v, keys, values, lengths)
    return _step(q, k, v, keys, values, lengths, backend)


@torch.library.custom_op("isoflop::attention_step", mutates_args=("keys", "values"))
def _step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, backend: str | None
) -> Tensor:
    if choose_backend(backend, q.device) == "reference":
        return _reference(q, k, v, keys, values, lengths)
    from kernels.attention.decode_triton import launch_step

    if q.dtype not in _DTYPES:
        raise ValueError(f'q is {q.dtype}: the Triton kernel takes 32 bits or less, pass backend="reference"')
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        return launch_step(q, k, v, keys, values, lengths)


@_step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(v.shape)


def _reference(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    place = lengths.view(-1, 1, 1, 1).expand(-1, keys.shape[1], 1, keys.shape[3])
    keys.scatter_(2, place, k[:, :, None].to(keys.dtype))
    values.scatter_(2, place, v[:, :, None].to(values.dtype))
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (keys.to(dtype) @ q.to(dtype)[..., None]).squeeze(-1) * q.shape[-1] ** -0.5
    seen = torch.arange(keys.shape[2], device=q.device) <= lengths[:, None]
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    # Not a number times zero is not zero: what lies behind may be anything.
    seen_values = values.to(dtype).masked_fill(~seen[:, None, :, None], 0.0)
    return (weights[..., None, :] @ seen_values).squeeze(-2).to(v.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    if q.ndim != 3:
        raise ValueError(f"q has shape {tuple(q.shape)}: must be (B, H, D)")
    batch, heads, width = q.shape
    capacity = keys.shape[2] if keys.ndim == 4 else 0
    cache = (batch, heads, capacity, width)
    expect_shape("k", k, q.shape)
    expect_shape("v", v, q.shape)
    expect_shape("keys", keys, cache)
    expect_shape("values", values, cache)
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(f"lengths is {lengths.dtype} {tuple(lengths.shape)}: must be int64 ({batch},)")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the cache is extended in place: keys and values must be contiguous")
