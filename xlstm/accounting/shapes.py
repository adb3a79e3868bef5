"""Model shapes from a few numbers, by the rules of the paper."""

import math
from typing import Any, Literal

from xlstm.arch_names import canonical_arch, parse_stack
from xlstm.config import LSTMConfig, MLSTMConfig, ModelConfig, TransformerConfig, XLSTMConfig

FFN_FACTOR = 2.667
XLSTM_FFN_FACTOR = 1.3
"""Of the sLSTM blocks of arXiv:2405.04517."""
XLSTM_INNER_FACTOR = 2
"""Of its mLSTM blocks."""


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


def xlstm_config(
    arch: str,
    *,
    d_model: int,
    num_blocks: int,
    num_heads: int,
    vocab_size: int,
    multiple_of: int = 64,
    chunk_size: int = 64,
) -> XLSTMConfig:
    """A stack of arXiv:2405.04517 by its name (`xlstm.arch_names`), ablations included.

    The inner width of its mLSTM blocks is twice the model's, and the FFN of its sLSTM blocks 1.3 times as
    wide, each rounded up to a multiple; the first also to one of the heads and of 4, the blocks of its maps.
    """
    stack = parse_stack(arch)
    switches = dict(stack.switches)
    num_slstm = len(stack.slstm_at(num_blocks))
    fits = math.lcm(multiple_of, num_heads, XLSTMConfig.qkv_block)
    inner = XLSTM_INNER_FACTOR * d_model
    return XLSTMConfig(
        arch=stack.text,
        vocab_size=vocab_size,
        d_model=d_model,
        num_blocks=num_blocks,
        num_heads=num_heads,
        inner_dim=fits * math.ceil(inner / fits) if num_slstm < num_blocks else 0,
        ffn_dim=ffn_width(d_model, factor=XLSTM_FFN_FACTOR, multiple_of=multiple_of, fraction="up")
        if num_slstm
        else 0,
        chunk_size=chunk_size,
        **switches,
    )


def build_config(
    arch: str,
    *,
    d_model: int,
    num_blocks: int,
    num_heads: int,
    vocab_size: int,
    ffn_factor: float = FFN_FACTOR,
    ffn_multiple_of: int = 64,
    chunk_size: int = 64,
) -> ModelConfig:
    """Any architecture by its name, from what a ladder of sizes says.

    An LSTM has no heads; `ffn_factor` is that of the Transformer and the mLSTM of arXiv:2510.02228 alone.
    ValueError for an unknown name or a shape that does not fit it.
    """
    arch = canonical_arch(arch)
    size: dict[str, Any] = {"d_model": d_model, "num_blocks": num_blocks, "vocab_size": vocab_size}
    if arch == "lstm":
        return LSTMConfig(**size)
    size["num_heads"] = num_heads
    ffn: dict[str, Any] = {"ffn_factor": ffn_factor, "ffn_multiple_of": ffn_multiple_of}
    if arch == "mlstm":
        return mlstm_config(**size, **ffn, chunk_size=chunk_size)
    if arch == "transformer":
        return transformer_config(**size, **ffn)
    return xlstm_config(arch, **size, multiple_of=ffn_multiple_of, chunk_size=chunk_size)
