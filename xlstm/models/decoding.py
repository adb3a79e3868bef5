"""What decoding keeps, in buffers of fixed address, and where the tokens of a prefill lie.

A state is changed in place, so that a captured CUDA graph finds it where it was. The state of a block is a
tuple of tensors whose first dimension is the batch, or of such tuples: C, n, m of an mLSTM cell, keys and
values of attention.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BlockState = tuple[Any, ...]


@dataclass
class DecodingState:
    """The sequences of a batch up to now."""

    lengths: Tensor
    """(B,) int64 on the device: tokens that each has seen."""
    blocks: list[BlockState]

    def tensors(self) -> Iterator[Tensor]:
        yield self.lengths
        for block in self.blocks:
            yield from _leaves(block)

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
    def indices(self) -> list[int]:
        """`rows` as numbers."""
        return list(range(len(self.lengths))) if self.rows is None else self.rows.tolist()

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
        rows = self.rows
        return state if rows is None else _each(lambda part: part.index_select(0, rows), state)

    def write(self, state: BlockState, new: BlockState) -> None:
        """Put rows back into a block's state."""
        for part, value in zip(_leaves(state), _leaves(new), strict=True):
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


class DecodesByExtend:
    """`new_state`, `prefill` and `step` of a backbone that can go on from a state by a function.

    Its `extend(x, states)` takes and returns a state a block, of nested tuples of tensors that have the batch
    first; zeros are the beginning. Sequences of several lengths are read one after the other.
    """

    out_norm: Any
    extend: Callable[..., Any]

    @torch.no_grad()
    def new_state(
        self,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        device: torch.device,
    ) -> list[BlockState]:
        """Shapes and dtypes are those after one token; neither `capacity` nor `state_dtype` matters."""
        width = self.out_norm.weight
        _, after = self.extend(width.new_zeros(1, 1, *width.shape), None)
        return [
            _each(lambda x: torch.zeros(batch_size, *x.shape[1:], dtype=x.dtype, device=device), block)
            for block in after
        ]

    def prefill(self, x: Tensor, states: list[BlockState], layout: Layout) -> Tensor:
        """The tokens x of `layout`; the state moves on in place."""
        if layout.cu_seqlens is None:
            return self._go_on(x, states, layout)
        parts = x.split(list(layout.lengths), 1)
        alone = [
            lay_out([start], [length], x.device, [row])
            for row, start, length in zip(layout.indices, layout.starts, layout.lengths, strict=True)
        ]
        return torch.cat([self._go_on(part, states, one) for part, one in zip(parts, alone, strict=True)], 1)

    def step(self, x: Tensor, states: list[BlockState], lengths: Tensor) -> Tensor:
        """x (B, d), one token of every sequence; the state moves on in place."""
        everyone = Layout((1,), (1,), None, None, lengths)
        return self._go_on(x[:, None], states, everyone)[:, 0]

    def _go_on(self, x: Tensor, states: list[BlockState], layout: Layout) -> Tensor:
        before = None if layout.fresh else [layout.read(state) for state in states]
        x, after = self.extend(x, before)
        for state, new in zip(states, after, strict=True):
            layout.write(state, new)
        return x


def _leaves(state: BlockState) -> Iterator[Tensor]:
    for part in state:
        if isinstance(part, tuple):
            yield from _leaves(part)
        else:
            yield part


def _each(change: Callable[[Tensor], Tensor], state: BlockState) -> BlockState:
    """A function of every tensor of a state."""
    return tuple(_each(change, part) if isinstance(part, tuple) else change(part) for part in state)
