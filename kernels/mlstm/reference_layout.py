"""From sequences to the chunks that the reference mLSTM computes with, and back.

Chunks that are due at one time, the n-th of every row, stand next to each other, and rows with more chunks
come first, as in a torch PackedSequence: at step n the first counts[n] rows are still running.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """Which token stands where in the chunks, of L tokens each."""

    counts: list[int]
    """Rows that have an n-th chunk, for each n; never increasing."""
    rows: int
    chunk: int
    length: int
    tokens: Tensor | None = None
    """(chunks, L), packed documents only: the token at each place; the last of its document as padding."""
    padding: Tensor | None = None
    """(chunks, L): True where no token stands."""
    places: Tensor | None = None
    """(S,): where each token stands in the flattened chunks."""
    order: Tensor | None = None
    """(documents,): longest first."""

    def split(self, x: Tensor) -> Tensor:
        """(B, S, H, D) to (chunks, H, L, D)."""
        if self.tokens is not None:
            return x[0][self.tokens].transpose(1, 2)
        x = F.pad(x, (0, 0, 0, 0, 0, self._tail)) if self._tail else x
        x = x.unflatten(1, (len(self.counts), self.chunk)).permute(1, 0, 3, 2, 4)
        return x.flatten(0, 1)

    def split_gate(self, x: Tensor, padding: float) -> Tensor:
        """(B, S, H) to (chunks, H, L). Padding: log i = -inf writes nothing, log f = 0 forgets nothing."""
        if self.tokens is not None and self.padding is not None:
            return x[0][self.tokens].transpose(1, 2).masked_fill(self.padding[:, None], padding)
        x = F.pad(x, (0, 0, 0, self._tail), value=padding) if self._tail else x
        return x.unflatten(1, (len(self.counts), self.chunk)).permute(1, 0, 3, 2).flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        """(chunks, H, L, D) to (B, S, H, D)."""
        if self.places is not None:
            return x.transpose(1, 2).flatten(0, 1)[self.places][None]
        x = x.unflatten(0, (len(self.counts), self.rows)).permute(1, 0, 3, 2, 4)
        return x.flatten(1, 2)[:, : self.length]

    def order_rows(self, x: Tensor) -> Tensor:
        """(rows, ...) as the sequences come, to the order of their chunks."""
        return x if self.order is None else x[self.order]

    def restore_rows(self, x: Tensor) -> Tensor:
        """(rows, ...) in the order of their chunks, to that of the sequences."""
        return x if self.order is None else x[self.order.argsort()]

    @property
    def _tail(self) -> int:
        return len(self.counts) * self.chunk - self.length


def rows_layout(batch: int, length: int, chunk_size: int) -> Layout:
    """Of `batch` sequences of one length, in chunks of `chunk_size` tokens at most."""
    chunk = _chunk_length(length, chunk_size)
    return Layout(counts=[batch] * -(-length // chunk), rows=batch, chunk=chunk, length=length)


def _chunk_length(length: int, longest: int) -> int:
    """A power of two of at least 2 sqrt(length), if that is not too long."""
    balanced = 1 << (2 * math.isqrt(length) - 1).bit_length() if length else 1
    return min(longest, balanced, max(1, length))


def documents_layout(cu_seqlens: Tensor, chunk_size: int) -> Layout:
    """Of documents packed in a row, which begin and end at `cu_seqlens` (documents + 1).

    Every document starts a chunk, so no chunk mixes two.
    """
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    chunk = _chunk_length(longest, chunk_size)
    order = lengths.argsort(descending=True, stable=True)
    starts, ends = bounds[:-1][order], bounds[1:][order]
    offsets = torch.arange(0, longest, chunk, device=bounds.device)
    running = starts + offsets[:, None] < ends  # (steps, documents)
    first = (starts + offsets[:, None])[running]
    ends = ends.expand_as(running)[running]
    tokens = first[:, None] + torch.arange(chunk, device=bounds.device)
    padding = tokens >= ends[:, None]
    length = int(bounds[-1])
    places = torch.empty(length, dtype=torch.long, device=bounds.device)
    places[tokens[~padding]] = (~padding).flatten().nonzero().squeeze(-1)
    return Layout(
        counts=running.sum(-1).tolist(),
        rows=len(lengths),
        chunk=chunk,
        length=length,
        tokens=torch.minimum(tokens, ends[:, None] - 1),
        padding=padding,
        places=places,
        order=order,
    )
