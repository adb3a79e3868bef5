"""Published mLSTM checkpoints: other names, and matrices that were stored as one."""

from collections.abc import Mapping

from torch import Tensor

from xlstm.config import MLSTMConfig

HUGGING_FACE_NAMES = {"backbone.embeddings.weight": "embedding.weight"}


def adapt_checkpoint(weights: Mapping[str, Tensor], config: MLSTMConfig) -> dict[str, Tensor]:
    """Weights of xlstm_large or Hugging Face, `weight_mode` single or fused, under our names."""
    adapted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        adapted.update(_split(HUGGING_FACE_NAMES.get(name, name), tensor, config))
    return adapted


def _split(name: str, tensor: Tensor, config: MLSTMConfig) -> dict[str, Tensor]:
    """The parts of a fused matrix or bias, which are stacked along its outputs; others as they are."""
    layer, _, kind = name.rpartition(".")
    parent, _, module = layer.rpartition(".")
    queries = config.num_heads * config.head_dim_qk
    parts = {
        "qkv_opreact": {"q": queries, "k": queries, "v": config.d_model, "ogate_preact": config.d_model},
        "ifgate_preact": {"igate_preact": config.num_heads, "fgate_preact": config.num_heads},
        "proj_up_gate_z": {"proj_up_gate": config.ffn_dim, "proj_up": config.ffn_dim},
    }.get(module)
    if parts is None:
        return {name: tensor}
    pieces = tensor.split(list(parts.values()))
    return {f"{parent}.{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
