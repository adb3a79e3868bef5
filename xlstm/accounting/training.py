"""Training FLOPs by the formulas of arXiv:2510.02228 (appendix).

Embedding look-ups, norms and skip connections are not counted. The conventions have names, see
`xlstm.accounting.conventions`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

from xlstm.accounting import cells
from xlstm.accounting.conventions import (
    BACKWARD_FACTOR,
    BACKWARD_MIXING_FACTOR,
    BackwardMode,
    MixingMode,
    mixing_mode,
)
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """FLOPs of one sequence, forward."""

    projections: float
    """Linear maps into and out of the mixing layer, gates included."""
    mixing: float
    """Attention, or the mLSTM cell."""
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
    before it is rounded. ValueError where `mode` is one of the other architecture.
    """
    T, d, blocks = context_length, config.d_model, config.num_blocks
    if T < 1:
        raise ValueError(f"context_length = {T}: must be positive")
    mode = mixing_mode(config, mode)
    ffn = config.ffn_dim if ffn_dim is None else ffn_dim
    if isinstance(config, MLSTMConfig):
        mixing = config.num_heads * _cells(config, T, mode, causal_factor)
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

    ValueError for "tfla" on a Transformer: it counts the kernels of the mLSTM.
    """
    forward = forward_flops(config, context_length, mode=mode, ffn_dim=ffn_dim)
    if backward == "twice_forward":
        return BACKWARD_FACTOR * forward.total
    if backward == "mixing_2.5_forward":
        mixing = BACKWARD_MIXING_FACTOR * forward.mixing
    elif isinstance(config, MLSTMConfig):
        T, heads, K = context_length, config.num_heads, config.head_dim_qk
        layer = heads * _chunks(config, T, cells.chunk_backward) + cells.gate_gradients(T, heads, K)
        mixing = config.num_blocks * layer
    else:
        raise ValueError('backward = "tfla": counts the mLSTM\'s kernels; a Transformer has none of them')
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


def _cells(config: MLSTMConfig, T: int, mode: MixingMode, causal_factor: float | None) -> float:
    """One head of the mLSTM over a sequence."""
    K, V = config.head_dim_qk, config.head_dim_v
    if mode == "recurrent":
        return T * cells.recurrent_step(K, V)
    if mode == "parallel":
        return cells.parallel(T, K, V) if causal_factor is None else cells.parallel(T, K, V, causal_factor)
    if mode == "first":
        return _chunks(config, T, cells.chunk_first)
    return _chunks(config, T, lambda L, K, V: cells.chunk_tfla(L, K, V, causal_factor))


def _chunks(config: MLSTMConfig, T: int, chunk: Callable[[int, int, int], float]) -> float:
    """Whole chunks and the rest."""
    K, V, L = config.head_dim_qk, config.head_dim_v, config.chunk_size
    whole, rest = divmod(T, L)
    return whole * chunk(L, K, V) + (chunk(rest, K, V) if rest else 0)
