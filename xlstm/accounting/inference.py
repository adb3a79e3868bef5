"""FLOPs and bytes of generating one token, by arXiv:2510.02228 (appendix), with two of its slips avoided.

- Its code counts the weights of a Transformer once in 100 steps; here every step reads them.
- It scales the attention of a decode step by a causal factor; here a step attends to all that came before.
"""

from dataclasses import dataclass

from xlstm.accounting.parameters import count_parameters, parameters_by_part
from xlstm.config import MLSTMConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class BytesPerElement:
    """Storage of the parts that a decode step moves; the defaults are the paper's."""

    activations: int = 2
    """The cache of keys and values too."""
    weights: int = 2
    state: int = 4
    """C, n and m of the mLSTM."""


BYTES = BytesPerElement()


def state_bytes(
    config: ModelConfig, context_length: int, *, batch_size: int = 1, bytes_per: BytesPerElement = BYTES
) -> int:
    """What a sequence leaves behind: keys and values of `context_length` tokens, or the mLSTM states."""
    rows = batch_size * config.num_blocks
    if isinstance(config, MLSTMConfig):
        return rows * config.num_heads * _state_elements(config) * bytes_per.state
    return rows * context_length * 2 * config.d_model * bytes_per.activations


def decode_flops(config: ModelConfig, context_length: int, *, batch_size: int = 1) -> float:
    """FLOPs of one new token for each sequence, `context_length` tokens being there already."""
    d, V = config.d_model, config.vocab_size
    around = 8 * d + 6 * d * config.ffn_dim + 2 * config.ffn_dim  # two norms, two skips, feed-forward
    block = around + (_mlstm_step(config) if isinstance(config, MLSTMConfig) else 0)
    if not isinstance(config, MLSTMConfig):
        seen = context_length + 1
        block += 8 * d * d + seen * (4 * d + 5 * config.num_heads)
    return batch_size * (config.num_blocks * block + 3 * d + 2 * d * V)


def decode_bytes(
    config: ModelConfig, context_length: int, *, batch_size: int = 1, bytes_per: BytesPerElement = BYTES
) -> int:
    """Bytes moved by the same step: weights once, activations, and the state read and written.

    Of the cache, the keys and values of `context_length` tokens are read and those of one are written.
    """
    d, V, b = config.d_model, config.vocab_size, bytes_per
    weights = count_parameters(config) - parameters_by_part(config).embedding
    if isinstance(config, MLSTMConfig):
        state = 2 * state_bytes(config, 0, batch_size=batch_size, bytes_per=b)
    else:
        state = state_bytes(config, context_length + 1, batch_size=batch_size, bytes_per=b)
    activations = config.num_blocks * _activation_elements(config) + 2 * d + V
    embedding = d
    return weights * b.weights + state + batch_size * (activations + embedding) * b.activations


def _state_elements(config: MLSTMConfig) -> int:
    return config.head_dim_qk * config.head_dim_v + config.head_dim_qk + 1


def _mlstm_step(config: MLSTMConfig) -> float:
    """Projections, gates, head norm and cell of one token, all heads."""
    d, n, K, V = config.d_model, config.num_heads, config.head_dim_qk, config.head_dim_v
    projections = 2 * d * n * (2 * K + V) + 2 * d * n + 2 * n
    output = 2 * d * n * V + n * V + 3 * n * V + 2 * d * n * V
    cell = 9 + 4 * K * V + 6 * K + V + 3 + 2 * V * K + K
    return projections + output + n * cell


def _activation_elements(config: ModelConfig) -> int:
    """Elements in and out of the layers of one block, one token."""
    d, n = config.d_model, config.num_heads
    around = 2 * d + 3 * (d + config.ffn_dim)
    if not isinstance(config, MLSTMConfig):
        return around + (d + 3 * d) + 2 * d
    K, V = config.head_dim_qk, config.head_dim_v
    layer = d + n * (2 * K + V) + 2 * (d + n) + (d + n * V) + n * V + (d + n * V)
    cell = n * (2 * K + 2 * V + 2)
    return around + layer + cell
