"""What decoding keeps: buffers of fixed address for a batch of sequences, and where the tokens of a prefill lie.

A state is changed in place, so that a captured CUDA graph finds it where it was. The state of a block is a
tuple of tensors whose first dimension is the batch: C, n, m of an mLSTM cell, keys and values of attention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BlockState = tuple[Tensor, ...]


@dataclass
class DecodingState:
    """The sequences of a batch up to now."""

    lengths: Tensor
    """(B,) int64 on the device: tokens that each has seen."""
    blocks: list[BlockState]

    def tensors(self) -> Iterator[Tensor]:
        yield self.lengths
        for block in self.blocks:
            yield from block

    def reset(self) -> None:
        """Back to the beginning of all sequences."""
        for tensor in self.tensors():
            tensor.zero_()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())


@dataclass(frozen=True)
class Layout:
    """Which tokens a prefill gets: `lengths[r]` for the sequence `rows[r]`, that has seen `starts[r]`.

    Equal ones come as a batch (R, S). Others are packed without padding into one row (1, total), and
    `cu_seqlens` (R + 1,) int32 says where each begins.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    rows: Tensor | None
    """(R,) int64; None for all of the state, in order."""
    cu_seqlens: Tensor | None
    positions: Tensor
    """(S,) or, packed, (total,): tokens before each, int64."""

    @property
    def fresh(self) -> bool:
        """Nothing came before."""
        return not any(self.starts)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def last(self, x: Tensor) -> Tensor:
        """The last token of each sequence: (R, ...) of (R, S, ...) or (1, total, ...)."""
        return x[:, -1] if self.cu_seqlens is None else x[0, self.cu_seqlens[1:].long() - 1]

    def pad(self, x: Tensor) -> Tensor:
        """(R, longest, ...), zeros behind short sequences, of (R, S, ...) or (1, total, ...)."""
        if self.cu_seqlens is None:
            return x
        padded = x.new_zeros(len(self.lengths) * self.longest, *x.shape[2:])
        padded[self._slots()] = x[0]
        return padded.unflatten(0, (len(self.lengths), self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""
        return x if self.cu_seqlens is None else x.flatten(0, 1)[self._slots()][None]

    def read(self, state: BlockState) -> BlockState:
        """The rows of a block's state."""
        return state if self.rows is None else tuple(part.index_select(0, self.rows) for part in state)

    def write(self, state: BlockState, new: BlockState) -> None:
        """Put rows back into a block's state."""
        for part, value in zip(state, new, strict=True):
            if self.rows is None:
                part.copy_(value)
            else:
                part.index_copy_(0, self.rows, value.to(part.dtype))

    def _slots(self) -> Tensor:
        """(total,): where the padded batch, seen as one row, has each token."""
        device = self.positions.device
        within = torch.cat([torch.arange(length, device=device) for length in self.lengths])
        row = torch.arange(len(self.lengths), device=device)
        return within + self.longest * row.repeat_interleave(torch.tensor(self.lengths, device=device))


def lay_out(
    starts: Sequence[int], lengths: Sequence[int], device: torch.device, rows: Sequence[int] | None = None
) -> Layout:
    """The layout of sequences that go on from `starts` by `lengths` tokens, each at least 1."""
    chosen = None if rows is None else torch.tensor(rows, device=device)
    if len(set(starts)) == 1 and len(set(lengths)) == 1:
        positions = torch.arange(starts[0], starts[0] + lengths[0], device=device)
        return Layout(tuple(starts), tuple(lengths), chosen, None, positions)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat(
        [torch.arange(start, start + n, device=device) for start, n in zip(starts, lengths, strict=True)]
    )
    return Layout(tuple(starts), tuple(lengths), chosen, ends.int().to(device), positions)
