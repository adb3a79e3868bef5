"""The layout of the package xlstm (`xlstm.xlstm_large`): config.yaml, and the very names of our mLSTM."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xlstm.checkpoints.fields import Fields
from xlstm.checkpoints.fused import split_fused
from xlstm.checkpoints.xlstm_names import read_config, write_config
from xlstm.config import MLSTMConfig


def read(fields: Fields, weights: Mapping[str, Tensor]) -> tuple[MLSTMConfig, dict[str, Tensor]]:
    """Our configuration and weights."""
    config = read_config(fields, weights)
    return config, split_fused(weights, config)


def write(config: MLSTMConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.yaml and weights in the single mode, the only one that its `load_from_pretrained` reads."""
    return write_config(config) | {"weight_mode": "single"}, dict(weights)
