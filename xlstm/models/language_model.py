"""Embedding, backbone and head: what both architectures are as language models."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.cross_entropy import linear_cross_entropy
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, XLSTMConfig
from xlstm.models.decoding import DecodingState, Layout
from xlstm.models.layers import find_documents, init_matrices, soft_cap, widen
from xlstm.models.lstm import LSTMBackbone
from xlstm.models.mlstm import MLSTMBackbone
from xlstm.models.transformer import TransformerBackbone
from xlstm.models.xlstm import XLSTMBackbone

Backbone = MLSTMBackbone | TransformerBackbone | XLSTMBackbone | LSTMBackbone


class LanguageModel(nn.Module):
    """Tokens (B, S) to logits (B, S, vocabulary) for the token after each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.backbone = _backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.logit_soft_cap = config.logit_soft_cap if isinstance(config, MLSTMConfig) else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw new weights from torch's generator."""
        init_matrices(self, self.config.d_model, self.config.num_blocks)
        if isinstance(self.backbone, MLSTMBackbone):
            self.backbone.init_gates()
        if isinstance(self.backbone, XLSTMBackbone | LSTMBackbone):
            self.backbone.init_weights()

    def forward(
        self, tokens: Tensor, *, document_ids: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """`document_ids` (B, S), equal within a document: nothing passes from one to the next.

        With the true next tokens `targets` (B, S) the mean loss instead, nats a token; the logits of all
        tokens are then never in memory at once.
        """
        documents = None if document_ids is None else find_documents(document_ids)
        x = self.backbone(self.embedding(tokens), documents)
        if targets is None:
            return self._logits(x)
        return linear_cross_entropy(
            x.flatten(0, -2), self.lm_head.weight, targets.flatten(), soft_cap=self.logit_soft_cap
        )

    def extend(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits of tokens that go on where `state` ended, and the state after them; None is the beginning.

        Extending piece by piece equals `forward` of the whole. A state is never changed in place.
        """
        x, state = self.backbone.extend(self.embedding(tokens), state)
        return self._logits(x), state

    def new_state(
        self,
        batch_size: int,
        capacity: int,
        state_dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> DecodingState:
        """The beginning of `batch_size` sequences, in buffers that do not move, on the model's device.

        A Transformer keeps keys and values in the dtype of its weights, for at most `capacity` tokens a
        sequence; an mLSTM its C in `state_dtype` (float64 in a float64 model), whatever the length.
        """
        weight = self.embedding.weight
        device = weight.device if device is None else device
        blocks = self.backbone.new_state(batch_size, capacity, weight.dtype, state_dtype, device)
        lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return DecodingState(lengths=lengths, blocks=blocks)

    def prefill(self, tokens: Tensor, state: DecodingState, layout: Layout) -> Tensor:
        """Read the tokens of `layout`; the state moves on in place. Logits (R, vocabulary) after each's last.

        `state.lengths` is left to the caller, who knows them without asking the device.
        """
        x = self.backbone.prefill(self.embedding(tokens), state.blocks, layout)
        return self._logits(layout.last(x))

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """One token of every sequence, (B,), to logits (B, vocabulary); the state moves on in place.

        Nothing here depends on values that only the device knows, so a CUDA graph can capture it.
        """
        x = self.backbone.step(self.embedding(tokens), state.blocks, state.lengths)
        state.lengths += 1
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(x)
        return logits if self.logit_soft_cap is None else soft_cap(logits, self.logit_soft_cap)


def build_model(config: ModelConfig) -> LanguageModel:
    """The model of a configuration, with new weights from torch's generator."""
    return LanguageModel(config)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token, in float32: logits (..., vocabulary), true next tokens (...)."""
    return F.cross_entropy(widen(logits.flatten(0, -2)), targets.flatten())


def _backbone(config: ModelConfig) -> Backbone:
    match config:
        case MLSTMConfig():
            return MLSTMBackbone(config)
        case XLSTMConfig():
            return XLSTMBackbone(config)
        case LSTMConfig():
            return LSTMBackbone(config)
    return TransformerBackbone(config)
