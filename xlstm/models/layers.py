"""Layers that both architectures share."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.swiglu import swiglu
from xlstm.models.linear import linear_maps

SMALL_INIT = 2 / 5
"""Matrices start with variance SMALL_INIT / d_model."""


class Documents(NamedTuple):
    """Which tokens of a batch (B, S) belong together: a document ends where its id does, and with its row."""

    ids: Tensor
    """(B, S) integers."""
    cu_seqlens: Tensor
    """(documents + 1,) int32: where documents start in the batch seen as one row of B * S, and its end."""


def find_documents(ids: Tensor) -> Documents:
    """Of document ids (B, S), equal and contiguous within a document."""
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    first = starts.flatten().nonzero().squeeze(-1)
    return Documents(ids=ids, cu_seqlens=F.pad(first, (0, 1), value=ids.numel()).int())


class RMSNorm(nn.Module):
    """Over the last dimension, reduced in float32 and cast back before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(widen(x), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), the feed-forward layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj_up_gate = nn.Linear(width, hidden, bias=False)
        self.proj_up = nn.Linear(width, hidden, bias=False)
        self.proj_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_gpu(self, x):  # one large product beats two
            (both,) = linear_maps(x, torch.cat([self.proj_up_gate.weight, self.proj_up.weight]))
            return project(swiglu(both), self.proj_down)[0]
        return self.proj_down(F.silu(self.proj_up_gate(x)) * self.proj_up(x))


def trains_on_gpu(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer is to compute in the large pieces, with gradients of their own, that a GPU wants."""
    return layer.training and x.is_cuda


def project(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """x through each of some linear maps without bias."""
    if trains_on_gpu(maps[0], x):
        return linear_maps(x, *(linear.weight for linear in maps))
    return tuple(linear(x) for linear in maps)


def widen(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap): x where it is small, never beyond the cap."""
    return cap * torch.tanh(x / cap)


def init_matrices(model: nn.Module, d_model: int, num_blocks: int) -> None:
    """Embedding and matrices: standard deviation sqrt(2 / (5 d)), arXiv:1910.05895.

    `out_proj` and `proj_down`, which write to the residual stream: 2 / (blocks sqrt(fan in)).
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        std = (SMALL_INIT / d_model) ** 0.5
        if name.endswith(("out_proj", "proj_down")):
            std = 2 / (num_blocks * module.weight.shape[-1] ** 0.5)
        nn.init.normal_(module.weight, std=std)
