"""The classic LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) in a stack."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from xlstm.config import LSTMConfig
from xlstm.models.causal import back_in_place, one_a_row
from xlstm.models.decoding import DecodesByExtend
from xlstm.models.layers import Documents

LayerState = tuple[Tensor, Tensor]
"""h and c, each (B, 1, d)."""

FORGET_GATE_BIAS = 1.0
"""At the start it remembers (Jozefowicz et al. 2015)."""


class LSTMBlock(nn.Module):
    """torch's LSTM behind a norm and beside a skip connection."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=False)
        self.lstm = nn.LSTM(config.d_model, config.d_model, batch_first=True)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Uniform within 1 / sqrt(d), as torch; biases zero but that of the forget gate."""
        self.lstm.reset_parameters()
        biases = [bias for name, bias in self.lstm.named_parameters() if name.startswith("bias")]
        for bias in biases:
            nn.init.zeros_(bias)
        biases[0].view(4, -1)[1].fill_(FORGET_GATE_BIAS)

    def extend(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        before = None if state is None else tuple(part.transpose(0, 1).contiguous() for part in state)
        out, (h, c) = self.lstm(self.norm(x), before)
        return x + out, (h.transpose(0, 1), c.transpose(0, 1))


class LSTMBackbone(nn.Module, DecodesByExtend):
    """Blocks and the norm behind them: (B, S, d) to (B, S, d)."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LSTMBlock(config) for _ in range(config.num_blocks))
        self.out_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=False)

    def init_weights(self) -> None:
        for block in self._blocks():
            block.init_weights()

    def forward(self, x: Tensor, documents: Documents | None) -> Tensor:
        if documents is not None:
            return back_in_place(self.forward(one_a_row(x, documents), None), documents)
        return self.extend(x, None)[0]

    def extend(self, x: Tensor, states: list[LayerState] | None) -> tuple[Tensor, list[LayerState]]:
        after = []
        for j, block in enumerate(self._blocks()):
            x, state = block.extend(x, states[j] if states else None)
            after.append(state)
        return self.out_norm(x), after

    def _blocks(self) -> Iterator[LSTMBlock]:
        return cast("Iterator[LSTMBlock]", iter(self.blocks))
