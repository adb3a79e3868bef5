"""The parts of a decode step beside its sequence mixing, each one kernel on a GPU.

A step of one sequence reads every weight once and computes next to nothing: what it costs beyond that is the
number of its kernels. So the norm before a map, SwiGLU or the residual after it, and the gates beside it go
into the kernel of the map (`skinny_linear`), which for several sequences uses tensor cores. Many sequences
take the library's products, and the same parts around them are one kernel each (`add_norm`, `swiglu`,
`rotate_pairs`).

The references are the layers of the models, rounding included. No gradients: decoding needs none.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import choose_backend
from kernels.shapes import expect_shape

MOST_FEW = 65_535
"""Vectors of `skinny_linear`: CUDA's limit to the second dimension of a grid."""

ALONE = 2
"""Vectors up to which each reads the weights for itself, from the cache of the chip all but the first."""


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    glu: bool = False,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A map of few vectors x (B, K), and what stands around it: y (B, N) in the dtype of x, and the gates.

    `weight` (N, K). In this order: RMSNorm of x by `norm_weight` (K,); the product; with `glu` the weight is
    (2 N, K), gates above, and y is silu(upper) lower; `residual` (B, N) added. `gate_weight` (G, K) and
    `gate_bias` (G,) in float32 give a second result (B, G) of the same normed x, in float32. Everything
    contiguous. A vector's result depends on no other's.

    Raises:
        ValueError: shapes that do not fit, by name; more than MOST_FEW vectors.
    """
    _check(x, weight, norm_weight, gate_weight, gate_bias, residual, glu)
    if len(x) > MOST_FEW:
        raise ValueError(f"x has {len(x)} vectors: at most {MOST_FEW}, a product takes more")
    if choose_backend(backend, x.device) == "reference":
        return _reference(x, weight, norm_weight, norm_eps, gate_weight, gate_bias, glu, residual)
    from kernels.linear.several_triton import launch_several
    from kernels.linear.skinny_triton import launch_linear

    launch = launch_linear if len(x) <= ALONE or x.dtype != weight.dtype else launch_several
    with _on(x):
        return launch(x, weight, norm_weight, norm_eps, gate_weight, gate_bias, glu, residual)


def add_norm(
    x: Tensor,
    change: Tensor | None,
    norm_weight: Tensor,
    norm_eps: float,
    *,
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x + change (B, K), its RMSNorm, and the gates of that as in `skinny_linear`.

    Raises:
        ValueError: shapes that do not fit, by name.
    """
    width = x.shape[-1]
    expect_shape("change", change, x.shape)
    _expect("norm_weight", norm_weight, (width,))
    _expect_gates(gate_weight, gate_bias, width)
    if choose_backend(backend, x.device) == "reference":
        x = x if change is None else x + change
        normed = _norm(x, norm_weight, norm_eps)
        return x, normed, _gates(normed, gate_weight, gate_bias)
    from kernels.linear.skinny_triton import launch_add_norm

    with _on(x):
        return launch_add_norm(x, change, norm_weight, norm_eps, gate_weight, gate_bias)


def swiglu(x: Tensor, backend: str | None = None) -> Tensor:
    """silu of the first half of x (B, 2 N) times the second.

    Raises:
        ValueError: an x that has no halves.
    """
    if x.ndim != 2 or x.shape[1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (B, 2 N)")
    if choose_backend(backend, x.device) == "reference":
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
    from kernels.linear.skinny_triton import launch_swiglu

    with _on(x):
        return launch_swiglu(x)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, backend: str | None = None) -> Tensor:
    """Turn the pairs (j, j + D / 2) of each head of x (B, H, D) by angles cos, sin (B, D / 2), in float32.

    x may be a slice of a wider tensor, its last dimension contiguous; the result is contiguous.

    Raises:
        ValueError: shapes that do not fit, by name; heads of an odd width, or not contiguous.
    """
    if x.ndim != 3 or x.shape[-1] % 2 or x.stride(-1) != 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and strides {x.stride()}: must be (B, H, 2 n), the last stride 1"
        )
    for name, angles in (("cos", cos), ("sin", sin)):
        expect_shape(name, angles, (x.shape[0], x.shape[-1] // 2))
    if choose_backend(backend, x.device) == "reference":
        first, second = x.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat([first * c - second * s, second * c + first * s], -1).to(x.dtype)
    from kernels.linear.skinny_triton import launch_rotate

    with _on(x):
        return launch_rotate(x, cos, sin)


def read_out(
    x: Tensor,
    soft_cap: float | None,
    logits: Tensor,
    tokens: Tensor,
    arrivals: Tensor,
    backend: str | None = None,
) -> None:
    """The last of a step: `logits` (B, V) float32 from what the head gave, x (B, V), and the likeliest.

    `soft_cap`: cap tanh(x / cap), in the dtype of x. Of equal logits the first counts. Both results are
    written in place, `tokens` (B,) int64. `arrivals`: B int32 zeros, that are zeros again afterwards; what
    runs one after the other may share them.
    """
    if choose_backend(backend, x.device) == "reference":
        if soft_cap is not None:
            x = (soft_cap * torch.tanh(x.float() / soft_cap)).to(x.dtype)
        logits.copy_(x)
        tokens.copy_(logits.argmax(-1))
        return
    from kernels.linear.skinny_triton import launch_read_out

    with _on(x):
        launch_read_out(x.contiguous(), soft_cap, logits, tokens, arrivals)


def _reference(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_eps: float,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    glu: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    if norm_weight is not None:
        x = _norm(x, norm_weight, norm_eps)
    gates = _gates(x, gate_weight, gate_bias)
    y = F.linear(x, weight)
    if glu:
        y = swiglu(y, "reference")
    return y if residual is None else residual + y, gates


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, x.shape[-1:], eps=eps).to(x.dtype) * weight


def _gates(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    return None if weight is None else F.linear(x.to(weight.dtype), weight, bias)


def _check(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    glu: bool,
) -> None:
    width, rows = x.shape[-1], weight.shape[0] // (2 if glu else 1)
    _expect("weight", weight, (rows * (2 if glu else 1), width))
    _expect("norm_weight", norm_weight, (width,))
    _expect_gates(gate_weight, gate_bias, width)
    _expect("residual", residual, (x.shape[0], rows))


def _expect_gates(weight: Tensor | None, bias: Tensor | None, width: int) -> None:
    if weight is not None:
        _expect("gate_weight", weight, (len(weight), width))
        _expect("gate_bias", bias, (len(weight),))


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Its shape, and that it is contiguous."""
    expect_shape(name, tensor, shape)
    if tensor is not None and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def _on(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
