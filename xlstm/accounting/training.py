"""Training FLOPs by the formulas of arXiv:2510.02228 (appendix).

A multiply-add is two, an elementary function (exp, log, sigmoid, max, abs, mask) one. Embedding look-ups,
norms and skip connections are not counted. The backward pass counts twice the forward pass, in every part.
"""

from dataclasses import dataclass, fields
from typing import Literal

from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig

MixingMode = Literal["distill_scaling", "chinchilla", "first", "tfla"]
"""How the sequence mixing is counted.

Attention: "distill_scaling" (default) the causal half, "chinchilla" all T^2. mLSTM: "first" (default) and
"tfla", two counts of the chunkwise form, within 6e-5 of each other over the models of the paper.
"""

BACKWARD_FACTOR = 2
TFLA_CAUSAL_FACTOR = 0.75
"""Share of an L x L matrix that the "tfla" count takes as computed where L exceeds a tile of 64."""


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
    config: ModelConfig, context_length: int, *, mode: MixingMode | None = None
) -> ForwardFlops:
    """FLOPs of one sequence of `context_length` tokens, forward, by part.

    Where the context is no multiple of the chunk size, the last chunk is counted at the length it has.
    ValueError where `mode` is one of the other architecture.
    """
    T, d, blocks = context_length, config.d_model, config.num_blocks
    if T < 1:
        raise ValueError(f"context_length = {T}: must be positive")
    if isinstance(config, MLSTMConfig):
        mixing = config.num_heads * _cells(config, T, mode)
        width = config.num_heads * (2 * config.head_dim_qk + 2)  # queries, keys and two gates
        projections, output_gate = 2 * T * d * (width + 3 * d), T * d
    else:
        mixing, projections, output_gate = _attention(config, T, mode), 8 * T * d * d, 0
    return ForwardFlops(
        projections=blocks * projections,
        mixing=blocks * mixing,
        ffn=blocks * 6 * T * d * config.ffn_dim,
        logits=2 * T * d * config.vocab_size,
        elementwise=blocks * (output_gate + 2 * T * config.ffn_dim),
    )


def training_flops(
    config: ModelConfig, context_length: int, tokens: float, *, mode: MixingMode | None = None
) -> float:
    """FLOPs of training on `tokens` tokens in sequences of `context_length`, forward and backward."""
    forward = forward_flops(config, context_length, mode=mode).total
    return (1 + BACKWARD_FACTOR) * forward * tokens / context_length


def _attention(config: TransformerConfig, T: int, mode: MixingMode | None) -> float:
    """Scores, softmax and the weighted sum, all heads."""
    d, heads = config.d_model, config.num_heads
    if mode in (None, "distill_scaling"):
        return T * T * (2 * d + 2.5 * heads)
    if mode == "chinchilla":
        return T * T * (4 * d + 3 * heads)
    raise ValueError(f'mode = {mode!r}: a Transformer is counted by "distill_scaling" or "chinchilla"')


def _cells(config: MLSTMConfig, T: int, mode: MixingMode | None) -> float:
    """One head of the mLSTM over a sequence: whole chunks and the rest."""
    K, V, L = config.head_dim_qk, config.head_dim_v, config.chunk_size
    if mode in (None, "first"):
        chunk = _chunk_first
    elif mode == "tfla":
        chunk = _chunk_tfla
    else:
        raise ValueError(f'mode = {mode!r}: an mLSTM is counted by "first" or "tfla"')
    whole, rest = divmod(T, L)
    return whole * chunk(L, K, V) + (chunk(rest, K, V) if rest else 0)


def _chunk_first(L: int, K: int, V: int) -> float:
    triangle = 0.5 * L * (L + 1)
    state_gates = triangle + 2 * L + (5 + 5 * L)
    state = 2 * K * V + 4 * L * K * V + 3 * L * K + 2 * K + 4 * L * K
    inner = triangle + L * L * (10 + 2 * K + 2 * V) + 2 * L
    combined = 2 * L + 5 * L + 2 * L * V
    return state_gates + state + inner + combined


def _chunk_tfla(L: int, K: int, V: int) -> float:
    triangle = 0.5 * L * (L + 1)
    state_gates = 2 * L + triangle + 4 * L + 5
    state = 2 * K * V + 2 * L * K * V + L * K + 2 * K + 2 * L * K
    causal = TFLA_CAUSAL_FACTOR if L > 64 else 1
    inner = causal * (L * L * (5 + 2 * K + 2 * V + 3) + 2 * L) + triangle + 2 * L
    outer = 2 * L * K * V + 3 * L * K
    combined = 2 * L * V + 4 * L
    return state_gates + state + inner + outer + combined
