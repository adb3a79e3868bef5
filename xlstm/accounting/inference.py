"""FLOPs of prefill and of generating one token, by arXiv:2510.02228 (appendix), with its slips avoided.

- Its code scales the attention of a decode step by a causal factor and charges each generation for its
  prompt; here a step attends to all that came before, and is charged for itself.
- Its out-projection of attention is as wide as the key and value heads; here, as the query heads.

Both stay available by name for comparison (`DecodeAccounting`). Norms and skips are counted in inference, and
`num_kv_heads` counts a Transformer with grouped keys and values.
"""

from xlstm.accounting import cells
from xlstm.accounting.conventions import (
    PAPER_GENERATED,
    PREFILL_CAUSAL_FACTOR,
    TFLA_CAUSAL_FACTOR,
    DecodeAccounting,
    MixingMode,
)
from xlstm.accounting.stacks import block_kinds, mixing_flops
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, TransformerConfig, XLSTMConfig


def prefill_flops(
    config: ModelConfig,
    prompt_length: int,
    *,
    batch_size: int = 1,
    num_kv_heads: int | None = None,
    causal_factor: float | None = None,
    accounting: DecodeAccounting = "every_step",
) -> float:
    """FLOPs to the first token: all blocks for the whole prompt, the head for its last token.

    `causal_factor` is the share of a quadratic matrix that is computed, by default 0.65 of T x T in attention
    and 0.75 of a chunk in an mLSTM, which counts as in "tfla" at any chunk size.
    """
    T, blocks = prompt_length, config.num_blocks
    if isinstance(config, XLSTMConfig | LSTMConfig):
        mode: MixingMode = "recurrent" if isinstance(config, LSTMConfig) else "tfla"
        factor = TFLA_CAUSAL_FACTOR if causal_factor is None else causal_factor
        around = T * sum(count * costs.around for count, costs in block_kinds(config))
        mixing = mixing_flops(config, T, mode, factor)
        return batch_size * (around + mixing + 2 * config.d_model * config.vocab_size)
    if isinstance(config, MLSTMConfig):
        factor = TFLA_CAUSAL_FACTOR if causal_factor is None else causal_factor
        whole, rest = divmod(T, config.chunk_size)
        K, V = config.head_dim_qk, config.head_dim_v
        mixing = whole * cells.chunk_tfla(config.chunk_size, K, V, factor)
        mixing += cells.chunk_tfla(rest, K, V, factor) if rest else 0
        mixing *= config.num_heads
    else:
        factor = PREFILL_CAUSAL_FACTOR if causal_factor is None else causal_factor
        mixing = factor * T * _attention_of_one(config, T)
    around = T * blocks * block_flops(config, num_kv_heads=num_kv_heads, accounting=accounting)
    return batch_size * (around + blocks * mixing + 2 * config.d_model * config.vocab_size)


def decode_flops(
    config: ModelConfig,
    context_length: int,
    *,
    batch_size: int = 1,
    num_kv_heads: int | None = None,
    accounting: DecodeAccounting = "every_step",
    generated: int = PAPER_GENERATED,
) -> float:
    """FLOPs of one new token for each sequence, `context_length` tokens being there already.

    Under "paper", those of a prompt of that length and of `generated` tokens, over `generated`; an mLSTM
    counts the same under both.
    """
    d, V = config.d_model, config.vocab_size
    if isinstance(config, XLSTMConfig | LSTMConfig):
        around = sum(count * costs.around for count, costs in block_kinds(config))
        return batch_size * (around + mixing_flops(config, 1, "recurrent") + 3 * d + 2 * d * V)
    block = block_flops(config, num_kv_heads=num_kv_heads, accounting=accounting)
    if isinstance(config, MLSTMConfig):
        block += config.num_heads * cells.recurrent_step(config.head_dim_qk, config.head_dim_v)
    elif accounting == "paper":
        return batch_size * _paper_decode(config, block, context_length, generated)
    else:
        block += _attention_of_one(config, context_length + 1)
    return batch_size * (config.num_blocks * block + 3 * d + 2 * d * V)


def block_flops(
    config: MLSTMConfig | TransformerConfig,
    *,
    num_kv_heads: int | None = None,
    accounting: DecodeAccounting = "every_step",
) -> float:
    """Everything in a block but the sequence mixing, one token: maps, gates, two norms and two skips."""
    d, n = config.d_model, config.num_heads
    around = 8 * d + 6 * d * config.ffn_dim + 2 * config.ffn_dim
    if isinstance(config, MLSTMConfig):
        K, V = config.head_dim_qk, config.head_dim_v
        projections = 2 * d * n * (2 * K + V) + 2 * d * n + 2 * n
        return around + projections + 2 * d * n * V + n * V + 3 * n * V + 2 * d * n * V
    n_kv = n if num_kv_heads is None else num_kv_heads
    head = config.head_dim
    heads_out = n_kv if accounting == "paper" else n
    return around + 2 * d * head * (n + 2 * n_kv) + 2 * d * head * heads_out


def _attention_of_one(config: TransformerConfig, seen: int) -> float:
    """One query of every head against `seen` keys: scores, softmax at 5 a score, weighted sum."""
    return seen * (4 * config.d_model + 5 * config.num_heads)


def _paper_decode(config: TransformerConfig, block: float, prompt: int, generated: int) -> float:
    scores = prompt * generated + generated * (generated + 1) / 2
    attention = PREFILL_CAUSAL_FACTOR * _attention_of_one(config, 1) * scores
    head = 2 * config.d_model * config.vocab_size * (generated + 1)
    return (config.num_blocks * ((prompt + generated) * block + attention) + head) / generated
