"""Layers of the recurrent models: causal convolution, block-diagonal maps, rows of documents."""

import torch
from torch import Tensor, nn

from xlstm.models.layers import Documents


class CausalConv(nn.Module):
    """Depthwise convolution over time, with bias: every channel sees its last `width` values. (B, S, d)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, width, groups=channels)

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`before`: the inputs (B, width - 1, d) that came before x, zeros at the beginning. And the last
        ones, for what comes next."""
        kept = self.conv.kernel_size[0] - 1
        if before is None:
            before = x.new_zeros(x.shape[0], kept, x.shape[-1])
        seen = torch.cat([before, x], 1)
        return self.conv(seen.transpose(1, 2)).transpose(1, 2), seen[:, seen.shape[1] - kept :]


class BlockDiagonal(nn.Module):
    """A linear map without bias that mixes the channels of each of `blocks` blocks: (..., d) to (..., d)."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        width = channels // blocks
        self.weight = nn.Parameter(torch.empty(blocks, width, width))
        """(block, in, out)"""

    def init_weights(self, variance: float) -> None:
        """Normal, of `variance` over the number of channels that a channel sees."""
        nn.init.normal_(self.weight, std=(variance / self.weight.shape[-1]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, self.weight.shape[:2])
        return torch.einsum("...ni,nio->...no", blocks, self.weight).flatten(-2)


def one_a_row(x: Tensor, documents: Documents) -> Tensor:
    """Documents of a batch (B, S, d), each in a row of its own, padded behind: (documents, longest, d)."""
    lengths = documents.cu_seqlens.diff().tolist()
    return nn.utils.rnn.pad_sequence(x.flatten(0, 1).split(lengths), batch_first=True)


def back_in_place(rows: Tensor, documents: Documents) -> Tensor:
    """Inverse of `one_a_row`."""
    lengths = documents.cu_seqlens.diff()
    inside = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    return rows[inside].view(*documents.ids.shape, rows.shape[-1])
