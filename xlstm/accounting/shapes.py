"""Model shapes from a few numbers, by the rules of the paper."""

import math
from typing import Literal

from xlstm.config import MLSTMConfig, TransformerConfig

FFN_FACTOR = 2.667


def ffn_width(
    d_model: int, *, factor: float = FFN_FACTOR, multiple_of: int = 64, fraction: Literal["up", "down"]
) -> int:
    """`factor` times the width, rounded up to a multiple; its fraction goes up or down to an integer first.

    Both rules are in use and disagree where `factor` times the width lies just above a multiple (768: 2112 or
    2048). "up": the mLSTM runs and checkpoints of arXiv:2510.02228. "down": its Transformers, and the model
    code of xlstm_large and Hugging Face.
    """
    whole = {"up": math.ceil, "down": math.floor}[fraction](factor * d_model)
    return multiple_of * max(1, math.ceil(whole / multiple_of))


def transformer_config(
    *,
    d_model: int,
    num_blocks: int,
    num_heads: int,
    vocab_size: int,
    ffn_factor: float = FFN_FACTOR,
    ffn_multiple_of: int = 64,
) -> TransformerConfig:
    """A Transformer with the feed-forward width of arXiv:2510.02228."""
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_blocks=num_blocks,
        num_heads=num_heads,
        ffn_dim=ffn_width(d_model, factor=ffn_factor, multiple_of=ffn_multiple_of, fraction="down"),
    )


def mlstm_config(
    *,
    d_model: int,
    num_blocks: int,
    num_heads: int,
    vocab_size: int,
    ffn_factor: float = FFN_FACTOR,
    ffn_multiple_of: int = 64,
    qk_factor: float = 0.5,
    chunk_size: int = 64,
) -> MLSTMConfig:
    """An mLSTM with the feed-forward width of arXiv:2510.02228; queries are `qk_factor` as wide as values."""
    return MLSTMConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_blocks=num_blocks,
        num_heads=num_heads,
        ffn_dim=ffn_width(d_model, factor=ffn_factor, multiple_of=ffn_multiple_of, fraction="up"),
        head_dim_qk=math.floor(qk_factor * d_model / num_heads),
        chunk_size=chunk_size,
    )
