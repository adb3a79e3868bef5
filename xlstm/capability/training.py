"""The training of a capability run: AdamW on the answers alone, one step at a time.

The steps are those of any training (schedule, optimiser, clipping), without Lightning: these models are so
small that what it does around a step takes as long as the step.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.capability.material import Material
from xlstm.capability.task import IGNORED
from xlstm.models import build_model
from xlstm.run_spec import RunSpec
from xlstm.training.graph import StepGraph
from xlstm.training.optimizer import adamw, learning_rate


class Training:
    """A model on its way; `advance` takes the next step."""

    def __init__(
        self,
        spec: RunSpec,
        material: Material,
        device: torch.device,
        *,
        micro_batch: int | None = None,
        record: bool = False,
    ) -> None:
        """`micro_batch`: sequences that go through the model at once; None for the whole batch. `record`:
        forward and backward as a CUDA graph, whose replays take no time of the host.
        """
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.material = material
        self.device = device
        self.micro_batch = micro_batch
        self.model: nn.Module = build_model(spec.model).to(device)
        self.optimizer = adamw(self.model, spec.optimizer)
        self.step = 0
        self._recorded = StepGraph(self._backward, list(self.model.parameters())) if record else None

    @property
    def is_over(self) -> bool:
        return self.step >= self.spec.steps

    def advance(self) -> Tensor:
        """Take a step; its loss in nats an answer, on the device."""
        self._set_rate()
        batch = self._batch()
        loss = self._backward(batch) if self._recorded is None else self._recorded(batch)
        self._update()
        self.step += 1
        return loss

    def context(self) -> AbstractContextManager[Any]:
        """Mixed precision where the spec says so."""
        if self.spec.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; batches are functions of the step."""
        return {
            "run_key": self.spec.run_key,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. ValueError where the state is another run's."""
        if state["run_key"] != self.spec.run_key:
            raise ValueError(f"checkpoint of run {state['run_key'][:12]}, not of {self.spec.run_key[:12]}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _batch(self) -> Tensor:
        """Inputs and targets, (2, batch, length)."""
        return torch.from_numpy(np.stack(self.material.batch(self.step))).to(self.device)

    def _set_rate(self) -> None:
        rate = learning_rate(self.step, self.spec.steps, self.spec.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _backward(self, batch: Tensor) -> Tensor:
        """Gradients of the mean over the batch's answers, in parts where there is a micro-batch; the mean."""
        inputs, targets = batch
        answers = (targets != IGNORED).sum()
        size = self.micro_batch or len(inputs)
        total = torch.zeros((), device=self.device)
        for tokens, asked in zip(inputs.split(size), targets.split(size), strict=True):
            with self.context():
                logits = self.model(tokens)
            summed = F.cross_entropy(logits.flatten(0, 1).float(), asked.flatten(), reduction="sum")
            (summed / answers).backward()
            total += summed.detach()
        return total / answers

    def _update(self) -> None:
        # AdamW could clip as it reads (`clip_in_step`), but rounds otherwise: recorded results would change.
        nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.optimizer.grad_clip)
        self.optimizer.step()
        if self._recorded is None:  # a recorded step writes its gradients where they are
            self.optimizer.zero_grad(set_to_none=True)
