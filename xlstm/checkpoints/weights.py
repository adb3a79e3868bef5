"""Weights into a model, after every name, shape and dtype has been looked at."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xlstm.checkpoints.errors import CheckpointError
from xlstm.config import ModelConfig
from xlstm.models import LanguageModel, build_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def model_of(
    config: ModelConfig, weights: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = None
) -> LanguageModel:
    """A model with these weights and no others, in `dtype`, or in that of the widest of them.

    Raises:
        CheckpointError: naming `source` and what is missing, too much, of another shape or no float.
    """
    with torch.device("meta"):
        model = build_model(config)
    due = model.state_dict()
    _compare_names(set(due), set(weights), source, config)
    for name, tensor in weights.items():
        if tensor.shape != due[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensor.shape)}: the configuration says"
                f" {tuple(due[name].shape)}"
            )
        if tensor.dtype not in DTYPES:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
            raise CheckpointError(f"{source}: {name} is {tensor.dtype}: weights are {kinds}")
    if dtype is None:
        dtype = max((tensor.dtype for tensor in weights.values()), key=lambda kind: kind.itemsize)
    # A copy: a memory-mapped file, or a part of a larger tensor, is not the model's to keep.
    model.load_state_dict(
        {name: tensor.to(dtype, copy=True) for name, tensor in weights.items()}, assign=True
    )
    return model.eval()


def first_dimension(weights: Mapping[str, Tensor], name: str, source: str) -> int:
    """Rows of a weight that says what a configuration leaves open."""
    if name not in weights or weights[name].ndim != 2:
        raise CheckpointError(f"{source}: has no matrix {name}")
    return weights[name].shape[0]


def require_rows(name: str, tensor: Tensor, rows: int) -> None:
    """CheckpointError where a weight, a number alone included, does not have so many."""
    if tensor.shape[:1] != (rows,):
        found = tensor.shape[0] if tensor.ndim else 0
        raise CheckpointError(f"{name} has {found} rows: {rows} are due")


def _compare_names(due: set[str], found: set[str], source: str, config: ModelConfig) -> None:
    missing, extra = sorted(due - found), sorted(found - due)
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        hint = f"; it has {extra[0]}, of another architecture?" if extra else ""
        raise CheckpointError(f"{source}: has no {missing[0]}{others}, which {config.arch} needs{hint}")
    if extra:
        others = f" and {len(extra) - 1} others" if len(extra) > 1 else ""
        raise CheckpointError(f"{source}: has {extra[0]}{others}, for which {config.arch} has no place")
