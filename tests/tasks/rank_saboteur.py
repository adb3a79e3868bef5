"""A zygote whose trainings break in one of their processes, at the step that a tag of their job names.

`python tests/tasks/rank_saboteur.py SOCKET` serves as tasks.zygote does. The tag `fault` is "RANK:STEP:KIND".
With the tag `recorded` a job that records its steps can do so on a CPU, after a fashion.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks import zygote
from xlstm.training.job import TrainJob

if TYPE_CHECKING:
    from torch import Tensor, nn

RECORDED = "a step is recorded"
"""In the log of a job with that tag, from each of its processes."""


def work(request: zygote.Request) -> None:
    """In the child, before its processes are forked: arm the fault, which the chosen one alone meets."""
    if "death" not in request:
        job = TrainJob.from_json(request["job"])
        if "fault" in job.tags:
            arm(*job.tags["fault"].split(":"))
        if "recorded" in job.tags:
            record_without_a_gpu()
    zygote.work(request)


def arm(rank: str, step: str, kind: str) -> None:
    import torch.distributed as dist

    from xlstm.training.module import TrainingModule

    step_of = TrainingModule.training_step

    def training_step(module: TrainingModule, *args: object) -> object:
        here = dist.get_rank() if dist.is_initialized() else 0
        if (here, module.trainer.global_step) == (int(rank), int(step)):
            break_down(kind)
        return step_of(module, *args)  # type: ignore[arg-type]

    TrainingModule.training_step = training_step  # type: ignore[method-assign,assignment]


class Launched:
    """For a StepGraph where there is no CUDA: runs the step, and leaves gradients where the first one did."""

    def __init__(self, step: "Callable[[Tensor], Tensor]", parameters: "Sequence[nn.Parameter]") -> None:
        self.step = step
        self.parameters = parameters
        self.gradients: list[Tensor] = []

    def __call__(self, windows: "Tensor") -> "Tensor":
        for parameter, gradient in zip(self.parameters, self.gradients, strict=bool(self.gradients)):
            assert parameter.grad is gradient, "a replay would write where nobody reads"
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.step(windows)
        found = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not self.gradients:
            print(RECORDED, flush=True)
            self.gradients = found
        for parameter, gradient, new in zip(self.parameters, self.gradients, found, strict=True):
            parameter.grad = gradient.copy_(new)
        return loss


def record_without_a_gpu() -> None:
    """In the child: gradients travel alone and together, though all of these models are small."""
    from xlstm.training import module, share

    module.StepGraph = Launched  # type: ignore[misc,assignment]
    share.TOGETHER_BELOW_BYTES = 1024


def break_down(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "leave":
        os._exit(0)
    if kind == "hang":
        time.sleep(3600)
    if kind == "memory":
        raise MemoryError


if __name__ == "__main__":
    zygote.main(int(sys.argv[1]), work)
