"""The Lightning module: a language model, its loss, its optimiser. And the held-out loss."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from xlstm.models import next_token_loss
from xlstm.run_spec import OptimizerSpec
from xlstm.training.optimizer import adamw, learning_rate


def window_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean loss of the tokens that follow, nats. `windows`: (batch, context + 1), int64."""
    return next_token_loss(model(windows[:, :-1]), windows[:, 1:])


class TrainingModule(LightningModule):
    """`model` maps tokens (batch, context) to logits (batch, context, vocabulary)."""

    def __init__(self, model: nn.Module, optimizer: OptimizerSpec, steps: int) -> None:
        super().__init__()
        self.model = model
        self.spec = optimizer
        self.steps = steps
        self.trained = list(model.parameters())
        self.step_loss: Tensor | None = None
        self.step_grad_norm: Tensor | None = None

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        loss = window_loss(self.model, windows)
        self.step_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = adamw(self.model, self.spec)
        peak = self.spec.peak_lr
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, self.steps, self.spec) / peak
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by the global norm and keep it: it costs the same once."""
        self.step_grad_norm = nn.utils.clip_grad_norm_(self.trained, self.spec.grad_clip)


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    windows: Tensor,
    batch_size: int,
    context: AbstractContextManager[Any] | None = None,
) -> float:
    """Mean loss over `windows` (count, context + 1), nats per token; summed in float64."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    with context or nullcontext():
        for batch in windows.split(batch_size):
            total += window_loss(model, batch).double() * len(batch)
    model.train()
    return total.item() / len(windows)
