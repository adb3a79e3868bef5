"""A zygote whose trainings break in one of their processes, at the step that a tag of their job names.

`python tests/tasks/rank_saboteur.py SOCKET` serves as tasks.zygote does. The tag `fault` is "RANK:STEP:KIND".
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks import zygote
from xlstm.training.job import TrainJob


def work(request: zygote.Request) -> None:
    """In the child, before its processes are forked: arm the fault, which the chosen one alone meets."""
    if "death" not in request:
        job = TrainJob.from_json(request["job"])
        if "fault" in job.tags:
            arm(*job.tags["fault"].split(":"))
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
