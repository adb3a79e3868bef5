"""A process's share of a training over several: its sequences of every batch, and what all add up to.

A batch has the same sequences however many processes read it: rank r of n takes the r-th of n contiguous runs
of rows, whose lengths differ by one at most. Every process goes through the model equally often, as sharded
weights are gathered by all together; a weight makes up for parts of unequal length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

TOGETHER_BELOW_BYTES = 2**20
"""Tensors below travel as one: each alone would take longer to set out than to arrive."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rank `rank` of `ranks` processes; alone by default, where nothing is communicated."""

    rank: int = 0
    ranks: int = 1
    hosts: dist.ProcessGroup | None = field(default=None, compare=False)
    """A group for numbers on the CPU; None for the default one."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Which of `total` rows are this process's."""
        return slice(total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks)

    def parts(self, rows: Tensor, total: int, at_once: int) -> Iterator[tuple[Tensor, float]]:
        """This process's `rows` of a batch of `total` in parts of `at_once` at most, each with its weight.

        As many parts on every process. Means over the parts, times their weights, sum to a number whose mean
        over the processes is the mean over the batch. A process that has a part too few repeats a row with
        weight 0.
        """
        largest = -(-total // self.ranks)
        for part in rows.tensor_split(-(-largest // at_once)):
            if len(part):
                yield part, len(part) * self.ranks / total
            else:
                yield (rows if len(rows) else rows.new_zeros(1, rows.shape[1]))[:1], 0.0

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes; on the device, without waiting for it."""
        return value if self.ranks == 1 else self.sum(value) / self.ranks

    def sum(self, value: Tensor) -> Tensor:
        """Over the processes."""
        if self.ranks > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_in_place(self, values: Sequence[Tensor]) -> None:
        """Each over the processes, where it lies; on their device, without waiting for it.

        Of one type, and of the same shapes in the same order on every process.
        """
        if self.ranks == 1:
            return
        small = [value for value in values if value.nbytes < TOGETHER_BELOW_BYTES]
        travelling = [value for value in values if value.nbytes >= TOGETHER_BELOW_BYTES]
        if small:
            travelling.append(torch.cat([value.flatten() for value in small]))
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in travelling]:
            assert work is not None
            work.wait()  # on a GPU, the stream waits
        if small:
            arrived = travelling[-1].split([value.numel() for value in small])
            torch._foreach_copy_(small, [new.view_as(old) for new, old in zip(arrived, small, strict=True)])

    def largest(self, value: float) -> float:
        """Of all processes' numbers, which are on the host."""
        if self.ranks == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.hosts)
        return number.item()

    def agree(self, decide: Callable[[], int]) -> int:
        """What the first process decides; the others hear it. Over the hosts: no device is waited for."""
        if self.ranks == 1:
            return decide()
        decision = torch.tensor(decide() if self.is_first else 0)
        dist.broadcast(decision, 0, group=self.hosts)
        return int(decision)


ALONE = Share()
