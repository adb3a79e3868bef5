"""A Llama-style backbone (arXiv:2307.09288): causal attention with rotary positions, SwiGLU, pre-norm."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.config import TransformerConfig
from xlstm.models.layers import Documents, RMSNorm, SwiGLU, widen

Cache = tuple[Tensor, Tensor]
"""Rotated keys and values of all tokens so far, each (B, H, S, D)."""


class Rotation(NamedTuple):
    """Cosine and sine of each position and frequency, (S, D / 2)."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Of positions (S,): frequency j is theta^(-2 j / D) (arXiv:2104.09864).

    Angles are float64: at position 16,384 float32 is off by 1e-3 radians.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angles = positions[:, None] * theta**-exponents
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the pairs (j, j + D / 2) of x (..., S, D)."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([first * by.cos - second * by.sin, second * by.cos + first * by.sin], -1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        d = config.d_model
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, d, bias=False)
        self.v = nn.Linear(d, d, bias=False)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, positions: Rotation, mask: Tensor | None) -> Tensor:
        """`mask` (B, 1, S, S), True where a token may look; without one, at itself and all before."""
        q, k, v = self._heads(x, positions)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self._join(h)

    def extend(self, x: Tensor, positions: Rotation, cache: Cache | None) -> tuple[Tensor, Cache]:
        q, k, v = self._heads(x, positions)
        if cache is not None:
            k, v = torch.cat([cache[0], k], -2), torch.cat([cache[1], v], -2)
        new, total = q.shape[-2], k.shape[-2]
        mask = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        return self._join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), (k, v)

    def _heads(self, x: Tensor, positions: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.num_heads, -1)
        q, k, v = (project(x).unflatten(-1, heads).transpose(1, 2) for project in (self.q, self.k, self.v))
        return rotate(q, positions), rotate(k, positions), v

    def _join(self, h: Tensor) -> Tensor:
        return self.out_proj(h.transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, each behind a norm and beside a skip connection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_attention = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.norm_ffn = RMSNorm(config.d_model, config.norm_eps)
        self.ffn = SwiGLU(config.d_model, config.ffn_dim)

    def forward(self, x: Tensor, positions: Rotation, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm_attention(x), positions, mask)
        return x + self.ffn(self.norm_ffn(x))

    def extend(self, x: Tensor, positions: Rotation, cache: Cache | None) -> tuple[Tensor, Cache]:
        change, cache = self.attention.extend(self.norm_attention(x), positions, cache)
        x = x + change
        return x + self.ffn(self.norm_ffn(x)), cache


class TransformerBackbone(nn.Module):
    """Blocks and the norm behind them: (B, S, d) to (B, S, d)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_blocks))
        self.out_norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        positions = self._positions(0, x)
        mask = None if documents is None else _document_mask(documents)
        for block in self._blocks():
            x = block(x, positions, mask)
        return self.out_norm(x)

    def extend(self, x: Tensor, caches: list[Cache] | None) -> tuple[Tensor, list[Cache]]:
        seen = caches[0][0].shape[-2] if caches else 0
        positions = self._positions(seen, x)
        after = []
        for j, block in enumerate(self._blocks()):
            x, cache = block.extend(x, positions, caches[j] if caches else None)
            after.append(cache)
        return self.out_norm(x), after

    def _blocks(self) -> Iterator[TransformerBlock]:
        return cast("Iterator[TransformerBlock]", iter(self.blocks))

    def _positions(self, start: int, x: Tensor) -> Rotation:
        """Of the tokens x (B, S, d), the first of which has `start` before it."""
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        return rotation(positions, self.config.head_dim, self.config.rope_theta, widen(x).dtype)


def _document_mask(documents: Documents) -> Tensor:
    """(B, 1, S, S): the same document, not later. Positions run on, as only their differences count."""
    same = documents.ids[:, :, None] == documents.ids[:, None, :]
    return same.tril()[:, None]
