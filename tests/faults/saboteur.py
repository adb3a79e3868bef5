"""A zygote whose trainings break at a step that was written down for them, each once.

`python tests/faults/saboteur.py SOCKET` serves as tasks.zygote does, with the same imports and the same work.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks import zygote
from xlstm.training.files import write_atomically
from xlstm.training.job import TrainJob

SMALL_ENOUGH = 1
"""Micro-batch, in sequences, that a training which ran out of GPU memory gets by with."""


def plan_file(home: Path, run_key: str) -> Path:
    """Where a training looks for the fault that it is to meet: {"kind": ..., "step": ...}."""
    return home / "sabotage" / f"{run_key}.json"


def pid_file(home: Path, run_key: str) -> Path:
    """Where a training says that it begins, and as which process."""
    return home / "sabotage" / f"{run_key}.pid"


def work(request: zygote.Request) -> None:
    """In the child: arm the fault, then do what every training does."""
    if "death" not in request:
        job = TrainJob.from_json(request["job"])
        home = job.run_dir.parents[1]
        write_atomically(pid_file(home, job.spec.run_key), str(os.getpid()))
        plan = plan_file(home, job.spec.run_key)
        if plan.exists():
            arm(json.loads(plan.read_text()), plan, job)
    zygote.work(request)


def arm(fault: dict[str, object], plan: Path, job: TrainJob) -> None:
    """Have the first step from `fault["step"]` on meet the fault."""
    from xlstm.training.module import TrainingModule

    step_of = TrainingModule.training_step
    done = False

    def training_step(module: TrainingModule, *args: object) -> object:
        nonlocal done
        if not done and module.trainer.global_step >= int(str(fault["step"])):
            done = True
            act = FAULTS[str(fault["kind"])]
            if (
                act is not run_out_of_gpu_memory
                or (job.micro_batch or job.spec.batch_size) <= 2 * SMALL_ENOUGH
            ):
                plan.unlink()  # the next attempt meets none
            act(module)
        return step_of(module, *args)  # type: ignore[arg-type]

    TrainingModule.training_step = training_step  # type: ignore[method-assign,assignment]


def read_from_nowhere(module: object) -> None:
    ctypes.string_at(0)


def abort(module: object) -> None:
    os.abort()


def leave(module: object) -> None:
    os._exit(0)


def run_out_of_host_memory(module: object) -> None:
    """For real: the address space ends here, and the allocator of torch finds out."""
    import torch

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        torch.empty(1 << 32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def run_out_of_gpu_memory(module: object) -> None:
    """Said and not done: there may be no GPU here."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def lose_a_number(module: object) -> None:
    """A weight that is no number; the loss follows."""
    import torch

    with torch.no_grad():
        next(module.model.parameters()).fill_(float("nan"))  # type: ignore[attr-defined]


def fill_the_disk(module: object) -> None:
    """The kernel's own refusal, from the device that is always full."""
    with Path("/dev/full").open("w") as file:
        file.write("x")


def lose_the_database(module: object) -> None:
    """Every write to the store fails as SQLAlchemy says it, for longer than the training is patient."""
    import sqlite3

    import sqlalchemy.exc
    from mlflow.tracking import MlflowClient

    from xlstm.training import tracking

    def refuse(*args: object, **kwargs: object) -> None:
        lost = sqlite3.OperationalError("unable to open database file")
        raise sqlalchemy.exc.OperationalError("INSERT INTO metrics", {}, lost)

    for name in ("log_batch", "log_metric", "set_terminated"):
        setattr(MlflowClient, name, refuse)
    tracking.PATIENCE_S = 0.5
    tracking.insist.__defaults__ = (0.5,)
    tracking.FLUSH_EVERY_S = 0.0


def sleep_for_ever(module: object) -> None:
    time.sleep(3600)


def hang_deaf(module: object) -> None:
    """As a system call that no signal reaches."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(3600)


FAULTS: dict[str, Callable[[object], None]] = {
    "segfault": read_from_nowhere,
    "abort": abort,
    "exit": leave,
    "host memory": run_out_of_host_memory,
    "gpu memory": run_out_of_gpu_memory,
    "nan": lose_a_number,
    "disk full": fill_the_disk,
    "database lost": lose_the_database,
    "hang": sleep_for_ever,
    "deaf hang": hang_deaf,
}


def main(descriptor: int) -> None:
    """As tasks.zygote's, with the saboteur's work."""
    zygote.main(descriptor, work)


if __name__ == "__main__":
    main(int(sys.argv[1]))
