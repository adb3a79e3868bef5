"""What the two official layouts of the mLSTM have in common: sizes by factors, and rounding.

Hugging Face's xLSTM and xlstm_large say widths as factors of the model's, rounded up to a multiple. Ours says
the widths. The feed-forward width of a checkpoint is the one that its weights have: the rule of the
configuration gives another one for checkpoints of *xLSTM Scaling Laws*, which rounded up before they rounded
up (2112 and not 2048 at 768).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.fields import Fields
from xlstm.checkpoints.fused import is_fused
from xlstm.checkpoints.weights import first_dimension
from xlstm.config import MLSTMConfig

FFN_FACTOR = 2.667
MOST_MULTIPLE = 64


def round_up(width: float, multiple: int) -> int:
    """As the official code rounds: the fraction is cut off last."""
    return int((width + multiple - 1) // multiple * multiple)


def read_config(fields: Fields, weights: Mapping[str, Tensor]) -> MLSTMConfig:
    """Our configuration of an official one, its feed-forward width by the weights (names of xlstm_large).

    Raises:
        CheckpointError: an option that our model does not have, or a value that is none.
    """
    d = fields.whole("embedding_dim", "hidden_size")
    heads = fields.whole("num_heads")
    for name, expected in (("use_bias", False), ("add_out_norm", True), ("v_dim_factor", 1.0)):
        fields.only(name, expected)
    fields.only("tie_word_embeddings", False)
    norm_eps = float(fields.number("norm_eps", default=1e-6))
    fields.only("eps", norm_eps, default=1e-6)
    queries = int(d * fields.number("qk_dim_factor", default=0.5))
    if queries % heads or queries < heads:
        raise CheckpointError(
            f"{fields.source}: queries of {queries} channels: must be a multiple of num_heads = {heads}"
        )
    fused = is_fused(weights)
    gate = "backbone.blocks.0.ffn." + ("proj_up_gate_z" if fused else "proj_up_gate") + ".weight"
    try:
        return MLSTMConfig(
            vocab_size=fields.whole("vocab_size"),
            d_model=d,
            num_blocks=fields.whole("num_blocks", "num_hidden_layers"),
            num_heads=heads,
            ffn_dim=first_dimension(weights, gate, fields.source) // (2 if fused else 1),
            head_dim_qk=queries // heads,
            chunk_size=fields.whole("chunk_size", default=64),
            gate_soft_cap=fields.soft_cap("gate_soft_cap", 15.0),
            logit_soft_cap=fields.soft_cap("output_logit_soft_cap", 30.0),
            norm_eps=norm_eps,
        )
    except ValueError as error:
        raise CheckpointError(f"{fields.source}: {error}") from error


def write_config(config: MLSTMConfig) -> dict[str, Any]:
    """The fields that both layouts have, under names that both know."""
    factor, multiple = ffn_rule(config)
    return {
        "vocab_size": config.vocab_size,
        "embedding_dim": config.d_model,
        "num_blocks": config.num_blocks,
        "num_heads": config.num_heads,
        "use_bias": False,
        "norm_eps": config.norm_eps,
        "eps": config.norm_eps,
        "norm_reduction_force_float32": True,
        "add_out_norm": True,
        "qk_dim_factor": _factor(config.num_heads * config.head_dim_qk, config.d_model),
        "v_dim_factor": 1.0,
        "chunk_size": config.chunk_size,
        "ffn_proj_factor": factor,
        "ffn_round_up_to_multiple_of": multiple,
        "gate_soft_cap": config.gate_soft_cap,
        "output_logit_soft_cap": config.logit_soft_cap,
    }


def ffn_rule(config: MLSTMConfig) -> tuple[float, int]:
    """A factor and a multiple from which the official code gets this feed-forward width.

    The usual factor where it does; else one from the middle of those that do.
    """
    d, ffn = config.d_model, config.ffn_dim
    multiple = MOST_MULTIPLE
    while ffn % multiple:
        multiple //= 2
    if round_up(d * FFN_FACTOR, multiple) == ffn:
        return FFN_FACTOR, multiple
    factor = (ffn + 1 - multiple / 2) / d
    assert round_up(d * factor, multiple) == ffn, (d, ffn, factor)
    return factor, multiple


def _factor(width: int, of: int) -> float:
    """A factor of which int() of the product is this width."""
    exact = width / of
    return exact if int(of * exact) == width else (width + 0.5) / of
