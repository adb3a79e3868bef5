"""Parameters by part: equal to what the built model holds."""

from dataclasses import dataclass, fields

from xlstm.accounting.stacks import block_kinds
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, TransformerConfig, XLSTMConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a whole model."""

    embedding: int
    mixer: int
    """Attention, mLSTM, sLSTM or LSTM layers, with their gates, biases, convolutions and head norms."""
    ffn: int
    norms: int
    """Before each layer and before the head."""
    lm_head: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def non_embedding(self) -> int:
        """Without the embedding and the head: 2 V d less."""
        return self.mixer + self.ffn + self.norms


def parameters_by_part(config: ModelConfig) -> ParameterCount:
    """Untied embeddings, no biases but those of gates and convolutions (arXiv:2510.02228, appendix)."""
    d, blocks = config.d_model, config.num_blocks
    if isinstance(config, XLSTMConfig | LSTMConfig):
        kinds = block_kinds(config)
        return ParameterCount(
            embedding=config.vocab_size * d,
            mixer=sum(count * costs.mixer for count, costs in kinds),
            ffn=sum(count * costs.ffn for count, costs in kinds),
            norms=sum(count * costs.norms for count, costs in kinds) + d,
            lm_head=config.vocab_size * d,
        )
    return ParameterCount(
        embedding=config.vocab_size * d,
        mixer=blocks * _mixer_parameters(config),
        ffn=blocks * 3 * d * config.ffn_dim,
        norms=blocks * 2 * d + d,
        lm_head=config.vocab_size * d,
    )


def count_parameters(config: ModelConfig, embedding: bool = True) -> int:
    """N; with `embedding=False` without the embedding and the head."""
    parts = parameters_by_part(config)
    return parts.total if embedding else parts.non_embedding


def _mixer_parameters(config: MLSTMConfig | TransformerConfig) -> int:
    d, heads = config.d_model, config.num_heads
    if not isinstance(config, MLSTMConfig):
        return 4 * d * d
    queries_and_keys = 2 * d * heads * config.head_dim_qk
    values_gate_output = 3 * d * d
    gates = 2 * (d * heads + heads)
    head_norm = d
    return queries_and_keys + values_gate_output + gates + head_norm
