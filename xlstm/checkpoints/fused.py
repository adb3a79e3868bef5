"""The two weight modes of xlstm_large: matrices alone, or those of one input stacked along their outputs."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from xlstm.checkpoints.weights import require_rows
from xlstm.config import MLSTMConfig

Parts = dict[str, dict[str, int]]


def _parts(config: MLSTMConfig) -> Parts:
    """Fused module: its parts and how many outputs each has, in the order of their stacking."""
    queries = config.num_heads * config.head_dim_qk
    d, heads, ffn = config.d_model, config.num_heads, config.ffn_dim
    return {
        "mlstm_layer.qkv_opreact": {"q": queries, "k": queries, "v": d, "ogate_preact": d},
        "mlstm_layer.ifgate_preact": {"igate_preact": heads, "fgate_preact": heads},
        "ffn.proj_up_gate_z": {"proj_up_gate": ffn, "proj_up": ffn},
    }


def is_fused(names: Iterable[str]) -> bool:
    """Whether weights of these names are of the fused mode."""
    return any(".qkv_opreact." in name or ".proj_up_gate_z." in name for name in names)


def split_fused(weights: Mapping[str, Tensor], config: MLSTMConfig) -> dict[str, Tensor]:
    """Weights of either mode in the single one.

    Raises:
        CheckpointError: a fused matrix that does not have the rows of its parts.
    """
    parts = _parts(config)
    single: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        fused = next((fused for fused in parts if module.endswith(f".{fused}")), None)
        if fused is None:
            single[name] = tensor
            continue
        sizes = parts[fused]
        require_rows(name, tensor, sum(sizes.values()))
        parent = module.removesuffix(fused.rpartition(".")[2])
        for part, piece in zip(sizes, tensor.split(list(sizes.values())), strict=True):
            single[f"{parent}{part}.{kind}"] = piece
    return single


def fuse(weights: Mapping[str, Tensor], config: MLSTMConfig) -> dict[str, Tensor]:
    """Weights of the single mode in the fused one."""
    fused = dict(weights)
    for j in range(config.num_blocks):
        for module, sizes in _parts(config).items():
            parent, _, _ = module.rpartition(".")
            for kind in ("weight", "bias"):
                names = [f"backbone.blocks.{j}.{parent}.{part}.{kind}" for part in sizes]
                if all(name in fused for name in names):
                    joined = torch.cat([fused.pop(name) for name in names])
                    fused[f"backbone.blocks.{j}.{module}.{kind}"] = joined
    return fused
