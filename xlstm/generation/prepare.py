"""Models made ready for inference."""

import torch
from torch import nn

from xlstm.config import ModelConfig
from xlstm.models import LanguageModel, build_model
from xlstm.models.mlstm import GateLinear


def inference_model(
    model: LanguageModel, dtype: torch.dtype = torch.bfloat16, device: str | torch.device | None = None
) -> LanguageModel:
    """The model itself, to read and not to train: weights in `dtype`, on `device`.

    The input and forget gates stay in float32: they are a thousandth of the weights, and bfloat16 would round
    how long the model remembers.
    """
    gates = [module for module in model.modules() if isinstance(module, GateLinear)]
    model.to(device=device, dtype=dtype)
    if dtype in (torch.bfloat16, torch.float16):
        for gate in gates:
            gate.to(torch.float32)
    return model.eval().requires_grad_(False)


def random_model(
    config: ModelConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> LanguageModel:
    """A model with new weights, drawn on the device; for measurements, where weights do not matter."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = build_model(config)
    return inference_model(model, dtype)


def weight_bytes(model: nn.Module) -> int:
    """Of all parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())
