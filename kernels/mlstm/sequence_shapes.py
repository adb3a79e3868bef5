"""What the sequence kernels are launched on: sizes, packed documents, and what goes from one pass to the
other."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.mlstm.sequence_configs import SequenceConfig, padded_width
from kernels.mlstm.sequence_gates import BOUNDS, ROWS


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the function computed depends on, apart from tensors."""

    eps: float
    gate_soft_cap: float | None
    sigmoid: bool
    exact_norm: bool = True
    scale: float | None = None
    """Of q; None: 1 / sqrt(K)."""


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass."""

    C: Tensor
    """(chunks, H, KP, VP): states at the start of every chunk, widths padded to blocks."""
    n: Tensor
    """(chunks, H, KP) float32."""
    rows: Tensor
    """(ROWS, chunks, H, L) float32; see `sequence_gates`."""
    bounds: Tensor
    """(BOUNDS, chunks, H) float32."""
    norms: Tensor
    """(3, chunks, H, L) float32; see `outputs_kernel`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a problem and the chunks it is cut into."""

    batch: int
    length: int
    heads: int
    width: int
    value_width: int
    sequences: int
    chunks: int
    chunks_each: int
    """Of a row of the batch; 0 with packed documents."""
    padded: tuple[int, int]

    @classmethod
    def of(cls, q: Tensor, v: Tensor, cu_seqlens: Tensor | None, config: SequenceConfig) -> "Shape":
        batch, length, heads, width = q.shape
        value_width = v.shape[-1]
        each = (length + config.chunk - 1) // config.chunk
        sequences, chunks = batch, batch * each
        if cu_seqlens is not None:
            sequences = cu_seqlens.shape[0] - 1
            # Every document but for whole chunks adds at most one.
            chunks, each = length // config.chunk + sequences, 0
        return cls(
            batch=batch,
            length=length,
            heads=heads,
            width=width,
            value_width=value_width,
            sequences=sequences,
            chunks=chunks,
            chunks_each=each,
            padded=(padded_width(width, config), padded_width(value_width, config)),
        )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """S, NC, CH, H of the kernels."""
        return self.length, self.chunks_each, self.chunks * self.heads, self.heads

    @property
    def widths(self) -> dict[str, int]:
        return {"K": self.width, "V": self.value_width, "KP": self.padded[0], "VP": self.padded[1]}

    def saved(self, like: Tensor, config: SequenceConfig) -> Saved:
        """Unfilled tensors for the forward pass. float16 states would overflow where bfloat16 ones do not."""
        chunk_heads, L = (self.chunks, self.heads), config.chunk
        state_dtype = torch.float32 if like.dtype == torch.float32 else torch.bfloat16
        return Saved(
            C=like.new_empty(*chunk_heads, *self.padded, dtype=state_dtype),
            n=like.new_empty(*chunk_heads, self.padded[0], dtype=torch.float32),
            rows=like.new_empty(ROWS, *chunk_heads, L, dtype=torch.float32),
            bounds=like.new_empty(BOUNDS, *chunk_heads, dtype=torch.float32),
            norms=like.new_empty(3, *chunk_heads, L, dtype=torch.float32),
        )

    def state(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Unfilled C and n of the sequences."""
        shape = (self.sequences, self.heads, self.width)
        C = like.new_empty(*shape, self.value_width, dtype=torch.float32)
        return C, like.new_empty(*shape, dtype=torch.float32)


class Documents(NamedTuple):
    """Packed documents: bounds (documents + 2), first chunk (documents + 1), document of each chunk."""

    cu: Tensor | None
    first: Tensor | None
    owner: Tensor | None

    @classmethod
    def of(
        cls, cu_seqlens: Tensor | None, shape: Shape, config: SequenceConfig, device: torch.device
    ) -> "Documents":
        if cu_seqlens is None:
            return cls(None, None, None)
        cu = cu_seqlens.to(device, torch.int64)
        lengths = cu.diff()
        fits = (cu[0] == 0) & (cu[-1] == shape.length) & (lengths >= 0).all()
        torch._assert_async(fits, f"cu_seqlens must rise from 0 to the {shape.length} tokens")
        first = torch.nn.functional.pad(((lengths + config.chunk - 1) // config.chunk).cumsum(0), (1, 0))
        chunks = torch.arange(shape.chunks, device=device)
        owner = torch.searchsorted(first[1:].contiguous(), chunks, right=True)
        return cls(torch.cat([cu, cu[-1:]]), first, owner)
