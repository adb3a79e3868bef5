"""The Lightning module: a language model, its loss, its optimiser. And the held-out loss."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from xlstm.models import next_token_loss
from xlstm.run_spec import OptimizerSpec
from xlstm.training.blocks import make_ready, plain_blocks
from xlstm.training.execution import PLAIN, Execution
from xlstm.training.graph import StepGraph
from xlstm.training.optimizer import adamw, clip_in_step, learning_rate
from xlstm.training.share import ALONE, Share
from xlstm.training.strategies import Replicas, gradient_norm, shard


def window_loss(model: nn.Module, windows: Tensor, fused: bool = False) -> Tensor:
    """Mean loss of the tokens that follow, nats. `windows`: (batch, context + 1), int64.

    `fused`: by the model itself, which then never holds the logits of all tokens.
    """
    tokens, targets = windows[:, :-1], windows[:, 1:]
    if fused:
        return model(tokens, targets=targets)
    return next_token_loss(model(tokens), targets)


class TrainingModule(LightningModule):
    """`model` maps tokens (batch, context) to logits (batch, context, vocabulary)."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerSpec,
        steps: int,
        batch_size: int,
        micro_batch: int | None = None,
        share: Share = ALONE,
        execution: Execution = PLAIN,
    ) -> None:
        """`batch_size`: sequences a step, over all processes, of which this one reads its `share`.

        `micro_batch`: sequences that go through the model at once, the gradients of a step's parts being
        summed; None for all that this process reads. It changes the memory, and the loss by the order of
        sums alone. `execution`: settled, see there.
        """
        super().__init__()
        self.model = model
        self.execution = execution
        make_ready(model, execution)
        self.spec = optimizer
        self.steps = steps
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.share = share
        self._rest: list[tuple[Tensor, float]] = []
        self.step_loss: Tensor | None = None
        self.step_grad_norm: Tensor | None = None
        self._graph: StepGraph | None = None
        if execution.cuda_graph:
            self._graph = StepGraph(self._whole_step, list(model.parameters()))

    def configure_model(self) -> None:
        """Shard the model where the trainer's strategy has a mesh for it."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        """The loss of this process's sequences, or of their first part; `backward` goes on with the rest."""
        if self._graph is not None:  # all of it in `backward`
            self._rest = [(windows, 1.0)]
            return windows.new_zeros((), dtype=torch.float32)
        first, *self._rest = self._parts(windows)
        loss = self._part_loss(*first)
        self.step_loss = loss.detach()
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the whole step: a part's graph is freed before the next part's forward."""
        if self._graph is not None:
            loss = self._graph(self._rest.pop()[0])
            self.share.sum_in_place([p.grad for p in self.model.parameters() if p.grad is not None])
            self.step_loss = self.share.sum(loss)
            return
        for part in self._rest:
            loss.backward(*args, **kwargs)
            assert self.step_loss is not None
            with self.trainer.precision_plugin.train_step_context():
                loss = self._part_loss(*part)
            self.step_loss = self.step_loss + loss.detach()
        if isinstance(self.trainer.strategy, Replicas):
            self.trainer.strategy.reduce_in_backward(loss)
        loss.backward(*args, **kwargs)
        assert self.step_loss is not None
        self.step_loss = self.share.mean(self.step_loss)
        self._rest = []

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """A recorded step writes its gradients where they were recorded."""
        if self._graph is None:
            super().optimizer_zero_grad(*args, **kwargs)

    def _whole_step(self, windows: Tensor) -> Tensor:
        """What `training_step` and `backward` do, in one and alone: what this process adds to the loss.

        Its gradients, too, are to be summed over the processes: a recording communicates with nobody.
        """
        total: Tensor | None = None
        for part, weight in self._parts(windows):
            with self.trainer.precision_plugin.train_step_context():
                torch.set_autocast_cache_enabled(False)  # a recording must not use what was cast before it
                loss = self._part_loss(part, weight / self.share.ranks)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _parts(self, windows: Tensor) -> Iterator[tuple[Tensor, float]]:
        return self.share.parts(windows, self.batch_size, self.micro_batch or self.batch_size)

    def _part_loss(self, windows: Tensor, weight: float) -> Tensor:
        """What a part contributes to the mean over the batch."""
        loss = window_loss(self.model, windows, bool(self.execution.fused_loss))
        return loss if weight == 1 else loss * weight

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = adamw(self.model, self.spec)
        peak = self.spec.peak_lr
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, self.steps, self.spec) / peak
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by the global norm and keep it: it costs the same once."""
        self.step_grad_norm = gradient_norm(self.model.parameters())
        clip_in_step(optimizer, self.step_grad_norm, self.spec.grad_clip)


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    windows: Tensor,
    batch_size: int,
    context: AbstractContextManager[Any] | None = None,
    alive: Callable[[], None] = lambda: None,
    share: Share = ALONE,
    execution: Execution = PLAIN,
) -> float:
    """Mean loss over `windows` (count, context + 1), nats per token; summed in float64 over all processes.

    Every process is given all windows and evaluates its share. `alive` is called after every batch, for
    whoever watches for a hang. Compiled blocks run as written: this is the loss of the plain model, and no
    second compilation for the mode and the batches of an evaluation.
    """
    model.eval()
    mean = torch.zeros((), dtype=torch.float64, device=windows.device)
    with context or nullcontext(), plain_blocks() if execution.compile else nullcontext():
        for part, weight in share.parts(windows[share.rows(len(windows))], len(windows), batch_size):
            mean += window_loss(model, part, bool(execution.fused_loss)).double() * weight
            alive()
    model.train()
    return share.mean(mean).item()
