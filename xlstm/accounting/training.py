"""Training FLOPs by the formulas of arXiv:2510.02228 (appendix).

Embedding look-ups, norms and skip connections are not counted. The conventions have names, see
`xlstm.accounting.conventions`.
"""

from dataclasses import dataclass, fields

from xlstm.accounting import cells
from xlstm.accounting.conventions import (
    BACKWARD_FACTOR,
    BACKWARD_MIXING_FACTOR,
    BackwardMode,
    MixingMode,
    mixing_mode,
)
from xlstm.accounting.stacks import Stack, block_kinds, mixing_flops
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, TransformerConfig, XLSTMConfig


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """FLOPs of one sequence, forward."""

    projections: float
    """Linear maps into and out of the mixing layer, gates included."""
    mixing: float
    """Attention, or the cell."""
    ffn: float
    logits: float
    elementwise: float
    """Activations and products of the gated parts."""

    @property
    def linear(self) -> float:
        return self.projections + self.ffn + self.logits

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def forward_flops(
    config: ModelConfig,
    context_length: int,
    *,
    mode: MixingMode | None = None,
    causal_factor: float | None = None,
    ffn_dim: float | None = None,
) -> ForwardFlops:
    """FLOPs of one sequence of `context_length` tokens, forward, by part.

    Where the context is no multiple of the chunk size, the last chunk is counted at the length it has.
    `causal_factor` replaces the share of a quadratic matrix that "tfla" and "parallel" take as computed.
    `ffn_dim` replaces the width of the feed-forward layer: the paper's grids are counted with 2.667 d_model
    before it is rounded; the stacks of the 2024 paper keep theirs. ValueError where `mode` is one of another
    architecture.
    """
    T, d, blocks = context_length, config.d_model, config.num_blocks
    if T < 1:
        raise ValueError(f"context_length = {T}: must be positive")
    if isinstance(config, XLSTMConfig | LSTMConfig):
        return _stack(config, T, mode, causal_factor)
    mode = mixing_mode(config, mode)
    ffn = config.ffn_dim if ffn_dim is None else ffn_dim
    if isinstance(config, MLSTMConfig):
        K, L = config.head_dim_qk, config.chunk_size
        mixing = config.num_heads * cells.sequence(T, K, config.head_dim_v, L, mode, causal_factor)
        width = config.num_heads * (2 * config.head_dim_qk + 2)  # queries, keys and two gates
        projections, output_gate = 2 * T * d * (width + 3 * d), T * d
    else:
        mixing, projections, output_gate = _attention(config, T, mode), 8 * T * d * d, 0
    return ForwardFlops(
        projections=blocks * projections,
        mixing=blocks * mixing,
        ffn=blocks * 6 * T * d * ffn,
        logits=2 * T * d * config.vocab_size,
        elementwise=blocks * (output_gate + 2 * T * ffn),
    )


def backward_flops(
    config: ModelConfig,
    context_length: int,
    *,
    mode: MixingMode | None = None,
    backward: BackwardMode = "twice_forward",
    ffn_dim: float | None = None,
) -> float:
    """FLOPs of one sequence, backward, under a named convention.

    ValueError for "tfla" on another architecture: it counts the kernels of the mLSTM.
    """
    forward = forward_flops(config, context_length, mode=mode, ffn_dim=ffn_dim)
    if backward == "twice_forward":
        return BACKWARD_FACTOR * forward.total
    if backward == "mixing_2.5_forward":
        mixing = BACKWARD_MIXING_FACTOR * forward.mixing
    elif isinstance(config, MLSTMConfig):
        T, heads, K = context_length, config.num_heads, config.head_dim_qk
        cell = cells.in_chunks(T, K, config.head_dim_v, config.chunk_size, cells.chunk_backward)
        layer = heads * cell + cells.gate_gradients(T, heads, K)
        mixing = config.num_blocks * layer
    else:
        raise ValueError(
            f'backward = "tfla": counts the mLSTM\'s kernels; a {_name(config)} has none of them'
        )
    return BACKWARD_FACTOR * (forward.linear + forward.elementwise) + mixing


def training_flops(
    config: ModelConfig,
    context_length: int,
    tokens: float,
    *,
    mode: MixingMode | None = None,
    backward: BackwardMode = "twice_forward",
    ffn_dim: float | None = None,
) -> float:
    """FLOPs of training on `tokens` tokens in sequences of `context_length`, forward and backward."""
    forward = forward_flops(config, context_length, mode=mode, ffn_dim=ffn_dim).total
    if backward == "twice_forward":
        return (1 + BACKWARD_FACTOR) * forward * tokens / context_length
    back = backward_flops(config, context_length, mode=mode, backward=backward, ffn_dim=ffn_dim)
    return (forward + back) * tokens / context_length


def _attention(config: TransformerConfig, T: int, mode: MixingMode) -> float:
    """Scores, softmax and the weighted sum, all heads."""
    d, heads = config.d_model, config.num_heads
    if mode == "distill_scaling":
        return T * T * (2 * d + 2.5 * heads)
    return T * T * (4 * d + 3 * heads)


def _stack(config: Stack, T: int, mode: MixingMode | None, causal_factor: float | None) -> ForwardFlops:
    kinds = block_kinds(config)
    return ForwardFlops(
        projections=T * sum(count * costs.projections for count, costs in kinds),
        mixing=mixing_flops(config, T, mode, causal_factor),
        ffn=T * sum(count * costs.ffn_flops for count, costs in kinds),
        logits=2 * T * config.d_model * config.vocab_size,
        elementwise=T * sum(count * costs.elementwise for count, costs in kinds),
    )


def _name(config: ModelConfig) -> str:
    return "Transformer" if isinstance(config, TransformerConfig) else config.arch
