"""Hugging Face's xLSTM (`NX-AI/xLSTM-7b`): model_type xlstm, and all names but one those of xlstm_large."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from xlstm.checkpoints.fields import Fields
from xlstm.checkpoints.fused import fuse, split_fused
from xlstm.checkpoints.xlstm_names import read_config, write_config
from xlstm.config import MLSTMConfig

WeightMode = Literal["single", "fused"]
MODEL_TYPE = "xlstm"
_EMBEDDING = {"backbone.embeddings.weight": "embedding.weight"}


def read(fields: Fields, weights: Mapping[str, Tensor]) -> tuple[MLSTMConfig, dict[str, Tensor]]:
    """Our configuration and weights."""
    renamed = {_EMBEDDING.get(name, name): tensor for name, tensor in weights.items()}
    config = read_config(fields, renamed)
    return config, split_fused(renamed, config)


def caches(config: MLSTMConfig) -> bool:
    """Whether its cache fits the model: it has room for widths of queries and values rounded up to 64.

    Without it the model is right, and generates slowly.
    """
    return config.num_heads * config.head_dim_qk % 64 == 0 and config.d_model % 64 == 0


def write(
    config: MLSTMConfig, weights: Mapping[str, Tensor], weight_mode: WeightMode = "single"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights. Kernels and mode are those that run without another package."""
    theirs = {ours: name for name, ours in _EMBEDDING.items()}
    renamed = {theirs.get(name, name): tensor for name, tensor in weights.items()}
    fields = {
        "model_type": MODEL_TYPE,
        "architectures": ["xLSTMForCausalLM"],
        **write_config(config),
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_blocks,
        "tie_word_embeddings": False,
        "weight_mode": weight_mode,
        "mode": "inference",
        "return_last_states": True,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
        "inference_state_dtype": "float32",
        "use_cache": caches(config),
    }
    return fields, fuse(renamed, config) if weight_mode == "fused" else renamed
