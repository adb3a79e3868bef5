"""A Llama-style backbone (arXiv:2307.09288): causal attention with rotary positions, SwiGLU, pre-norm."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from kernels.attention import attention_step
from xlstm.config import TransformerConfig
from xlstm.models.decoding import BlockState, Layout
from xlstm.models.layers import Documents, RMSNorm, SwiGLU, project, widen

Cache = tuple[Tensor, Tensor]
"""Rotated keys and values of all tokens so far, each (B, H, S, D)."""


class Rotation(NamedTuple):
    """Cosine and sine of each position and frequency, (..., D / 2)."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Of positions (...): frequency j is theta^(-2 j / D) (arXiv:2104.09864).

    Angles are float64: at position 16,384 float32 is off by 1e-3 radians.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angles = positions[..., None] * theta**-exponents
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

    def prefill(self, x: Tensor, positions: Rotation, cache: BlockState, layout: Layout) -> Tensor:
        """Attend to the cache and the tokens x of `layout`, whose keys and values join the cache."""
        h = self.attend(*self._heads(x, positions), cache, layout)
        return self._join(h)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: BlockState, layout: Layout) -> Tensor:
        """Of q, k, v (R, H, S, D), rotated, to h of that shape; k and v join the cache.

        Short sequences are padded behind, where no other token looks; the padding is not cached.
        """
        q, k, v = (layout.pad(part.transpose(1, 2)).transpose(1, 2) for part in (q, k, v))
        for part, new in zip(cache, (k, v), strict=True):
            _append(part, new, layout)
        if layout.fresh:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif layout.cu_seqlens is None:
            h = _attend_to_all_before(q, *layout.read(_seen(cache, layout.starts[0] + q.shape[-2])))
        else:
            h = torch.zeros_like(q)
            for j, row in enumerate(layout.indices):
                length, end = layout.lengths[j], layout.starts[j] + layout.lengths[j]
                seen = _seen(tuple(part[row : row + 1] for part in cache), end)
                h[j : j + 1, :, :length] = _attend_to_all_before(q[j : j + 1, :, :length], *seen)
        return layout.unpad(h.transpose(1, 2)).transpose(1, 2)

    def step(self, x: Tensor, positions: Rotation, cache: BlockState, lengths: Tensor) -> Tensor:
        """One token of every sequence, x (B, d); the cache, of `lengths` tokens, grows in place."""
        q, k, v = (linear(x).unflatten(-1, (self.num_heads, -1)) for linear in (self.q, self.k, self.v))
        keys, values = cache
        h = attention_step(rotate(q, positions), rotate(k, positions), v, keys, values, lengths)
        return self.out_proj(h.flatten(-2))

    def _heads(self, x: Tensor, positions: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        parts = project(x, self.q, self.k, self.v)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return rotate(q, positions), rotate(k, positions), v

    def _join(self, h: Tensor) -> Tensor:
        return project(h.transpose(1, 2).flatten(-2), self.out_proj)[0]


def _append(cached: Tensor, new: Tensor, layout: Layout) -> None:
    """Write (R, H, S, D) behind what rows of (B, H, capacity, D) hold."""
    if layout.rows is None and layout.cu_seqlens is None:
        start = layout.starts[0]
        cached[:, :, start : start + new.shape[2]] = new
        return
    places = zip(layout.indices, layout.starts, layout.lengths, strict=True)
    for source, (row, start, length) in enumerate(places):
        cached[row, :, start : start + length] = new[source, :, :length]


def _seen(cache: BlockState, end: int) -> tuple[Tensor, Tensor]:
    keys, values = cache
    return keys[:, :, :end], values[:, :, :end]


def _attend_to_all_before(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The queries are those of the last tokens; on a GPU no mask is built."""
    bias = causal_lower_right(q.shape[-2], keys.shape[-2])
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)


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

    def prefill(self, x: Tensor, positions: Rotation, cache: BlockState, layout: Layout) -> Tensor:
        x = x + self.attention.prefill(self.norm_attention(x), positions, cache, layout)
        return x + self.ffn(self.norm_ffn(x))

    def step(self, x: Tensor, positions: Rotation, cache: BlockState, lengths: Tensor) -> Tensor:
        x = x + self.attention.step(self.norm_attention(x), positions, cache, lengths)
        return x + self.ffn(self.norm_ffn(x))


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

    def new_state(
        self,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device,
    ) -> list[BlockState]:
        """Room for keys and values of `capacity` tokens a sequence, in `dtype`."""
        shape = (batch_size, self.config.num_heads, capacity, self.config.head_dim)
        return [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in self._blocks()
        ]

    def prefill(self, x: Tensor, caches: list[BlockState], layout: Layout) -> Tensor:
        positions = self._rotation(layout.positions, x)
        for block, cache in zip(self._blocks(), caches, strict=True):
            x = block.prefill(x, positions, cache, layout)
        return self.out_norm(x)

    def step(self, x: Tensor, caches: list[BlockState], lengths: Tensor) -> Tensor:
        """x (B, d), one token of every sequence, each of which has `lengths` (B,) before it."""
        positions = self._rotation(lengths[:, None], x)
        for block, cache in zip(self._blocks(), caches, strict=True):
            x = block.step(x, positions, cache, lengths)
        return self.out_norm(x)

    def _blocks(self) -> Iterator[TransformerBlock]:
        return cast("Iterator[TransformerBlock]", iter(self.blocks))

    def _positions(self, start: int, x: Tensor) -> Rotation:
        """Of the tokens x (B, S, d), the first of which has `start` before it."""
        return self._rotation(torch.arange(start, start + x.shape[1], device=x.device), x)

    def _rotation(self, positions: Tensor, x: Tensor) -> Rotation:
        return rotation(positions, self.config.head_dim, self.config.rope_theta, widen(x).dtype)


def _document_mask(documents: Documents) -> Tensor:
    """(B, 1, S, S): the same document, not later. Positions run on, as only their differences count."""
    same = documents.ids[:, :, None] == documents.ids[:, None, :]
    return same.tril()[:, None]
