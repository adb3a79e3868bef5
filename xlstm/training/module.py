"""The Lightning module: a language model, its loss, its optimiser. And the held-out loss."""

from collections.abc import Callable
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

    def __init__(
        self, model: nn.Module, optimizer: OptimizerSpec, steps: int, micro_batch: int | None = None
    ) -> None:
        """`micro_batch`: sequences that go through the model at once, the gradients of a step's parts being
        summed; None for the whole batch. It changes the memory, and the loss by the order of sums alone.
        """
        super().__init__()
        self.model = model
        self.spec = optimizer
        self.steps = steps
        self.micro_batch = micro_batch
        self.trained = list(model.parameters())
        self._rest: tuple[Tensor, ...] = ()
        self._batch_size = 0
        self.step_loss: Tensor | None = None
        self.step_grad_norm: Tensor | None = None

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        """The loss of the batch, or of its first part; `backward` goes on with the others."""
        first, *rest = windows.split(self.micro_batch or len(windows))
        self._rest, self._batch_size = tuple(rest), len(windows)
        loss = self._share(first) if rest else window_loss(self.model, windows)
        self.step_loss = loss.detach()
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the whole step: a part's graph is freed before the next part's forward."""
        loss.backward(*args, **kwargs)
        for windows in self._rest:
            assert self.step_loss is not None
            with self.trainer.precision_plugin.train_step_context():
                part = self._share(windows)
            part.backward(*args, **kwargs)
            self.step_loss = self.step_loss + part.detach()
        self._rest = ()

    def _share(self, windows: Tensor) -> Tensor:
        """What a part contributes to the mean over the batch."""
        return window_loss(self.model, windows) * (len(windows) / self._batch_size)

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
    alive: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss over `windows` (count, context + 1), nats per token; summed in float64.

    `alive` is called after every batch, for whoever watches for a hang.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    with context or nullcontext():
        for batch in windows.split(batch_size):
            total += window_loss(model, batch).double() * len(batch)
            alive()
    model.train()
    return total.item() / len(windows)
