"""Generation on a GPU in few kernels: the blocks of `packed_blocks`, as a step and as a prefill.

The step of `LanguageModel.step` goes layer by layer, some 25 kernels a block. Here a block of few sequences
is four maps (`kernels.linear`) and its sequence mixing; of more sequences, and of the tokens of a prefill,
four matrix products, with norm, SwiGLU and rotation in one kernel each.

The model's own weights become views of the packed ones: nothing is held twice.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kernels.linear import read_out
from xlstm.chain import most_chained
from xlstm.config import MLSTMConfig, TransformerConfig
from xlstm.generation.packed_blocks import (
    Block,
    Head,
    PackedAttention,
    PackedMLSTM,
    Piece,
    read_through,
)
from xlstm.models import LanguageModel
from xlstm.models.decoding import DecodingState, Layout
from xlstm.models.mlstm import MLSTMBlock
from xlstm.models.transformer import TransformerBlock, rotation


class PackedModel:
    """Prefill and step of an mLSTM or a Transformer for `batch_size` sequences, one call at a time."""

    def __init__(self, model: LanguageModel, batch_size: int, backend: str | None = None) -> None:
        """Packs the model's weights, once however often it is asked.

        Raises:
            TypeError: a model that `can_pack` refuses.
        """
        config = model.config
        layers: Any = model.backbone
        # Counts of the kernels that need them, which run one after the other.
        counts = batch_size * config.num_heads
        arrivals = torch.zeros(counts, dtype=torch.int32, device=model.lm_head.weight.device)
        self._arrivals = arrivals
        if isinstance(config, MLSTMConfig):
            self._blocks: list[Block] = [
                PackedMLSTM(cast(MLSTMBlock, block), config, arrivals, backend) for block in layers.blocks
            ]
        elif isinstance(config, TransformerConfig):
            self._blocks = [
                PackedAttention(cast(TransformerBlock, block), backend) for block in layers.blocks
            ]
        else:
            raise TypeError(f"a model of {config.arch} has no packed form")
        self._embedding = model.embedding
        self._head = Head(model, backend)
        self._config = config
        self.is_chain = batch_size <= most_chained(config.d_model)
        """Whether a step is a chain of maps, and not the library's products."""
        self._backend = backend

    def step(self, tokens: Tensor, state: DecodingState, logits: Tensor) -> None:
        """Read `tokens` (B,), move the state on; write `logits` (B, vocabulary) and, over the tokens, the
        likeliest."""
        # No dependent launch: what comes next may read ahead the state that the step before wrote.
        x = self._embedding(tokens)
        positions = self._positions(state.lengths)
        change: Tensor | None = None
        for block, kept in zip(self._blocks, state.blocks, strict=True):
            if self.is_chain:
                x = block.few(x, kept, positions, state.lengths)
            else:
                x, change = block.many(x, change, kept, positions, state.lengths)
        x = self._head.few(x) if self.is_chain else self._head.many(x, change)
        read_out(x, self._head.cap, logits, tokens, self._arrivals, self._backend)
        state.lengths += 1

    def prefill(self, tokens: Tensor, state: DecodingState, layout: Layout) -> Tensor:
        """As `LanguageModel.prefill`, logits in float32."""
        rows, length = tokens.shape
        x = self._embedding(tokens.flatten())
        places = layout.positions if len(layout.positions) == len(x) else layout.positions.repeat(rows)
        piece = Piece(layout, (rows, length), self._positions(places))
        change: Tensor | None = None
        for block, kept in zip(self._blocks, state.blocks, strict=True):
            x, change = read_through(block, x, change, kept, piece, last=block is self._blocks[-1])
        raw = self._head.many(x, change)
        logits = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        likeliest = torch.empty(len(raw), dtype=torch.int64, device=raw.device)
        read_out(raw, self._head.cap, logits, likeliest, self._arrivals, self._backend)
        return logits

    def _positions(self, places: Tensor) -> Any:
        config = self._config
        if not isinstance(config, TransformerConfig):
            return None
        return rotation(places, config.head_dim, config.rope_theta, torch.float32)


def can_pack(model: LanguageModel) -> bool:
    return isinstance(model.config, MLSTMConfig | TransformerConfig)
