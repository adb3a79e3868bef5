"""One training by several processes of a host, and one more that answers for them.

The process that was asked for the training keeps the run's folder and computes nothing: it starts a process a
device, waits, and where one of them ends without a result, ends the others and tells why the first one did.
Whatever ends it ends them. Where it has one thread, as a fork of the zygote has, they are forked from it with
all imports done; elsewhere, as in Ray's workers, each is an interpreter of its own.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xlstm.training.failures import Failure, RankError, StoppedError, classify, describe, one_line
from xlstm.training.files import write_atomically
from xlstm.training.job import NO_PROGRESS, RANKS, RunResult, TrainJob
from xlstm.training.processes import end_with, oom_kills, thread_count
from xlstm.training.share import Share
from xlstm.training.strategies import MEET_WITHIN

Work = Callable[[TrainJob, Share], RunResult]
"""What each process does: its share of the training. The first one's result is the run's."""
VICTIMS_S = 1.5
"""From the first end to that of all: time to say why. Less than what a training's owner grants."""
LOOPBACK = "lo"
"""gloo's: the processes are of one host, whatever its name resolves to."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a process that left no result."""

    rank: int
    code: int
    """Exit code, negative for a signal."""
    said: RunResult | None
    """The failure that it wrote down, if it could."""


def train_together(job: TrainJob, work: Work) -> RunResult:
    """Train on all devices of a job; the result of the first process.

    Raises RankError for the first process that failed, with its kind of failure, and StoppedError where this
    one was told to end. No process is left then.
    """
    folder = job.run_dir / RANKS
    shutil.rmtree(folder, ignore_errors=True)
    context: Any = multiprocessing.get_context("fork" if thread_count() == 1 else "spawn")
    kills = oom_kills()
    with tempfile.TemporaryDirectory(prefix="isoflop-ranks-") as meeting:
        ranks = [
            context.Process(
                target=_run, name=f"rank {rank}", args=(work, job.to_json(), rank, meeting, os.getpid())
            )
            for rank in range(len(job.devices))
        ]
        try:
            for process in ranks:
                process.start()
            deaths = _watch(ranks, folder)
        except StoppedError as error:
            number = NO_PROGRESS if error.failure is Failure.HUNG else signal.SIGTERM
            living = [process for process in ranks if process.is_alive()]  # some may not have been started
            for process in living:
                assert process.pid is not None
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            _wait_for_all(living)
            raise
        finally:
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()
    if deaths:
        raise _cause(deaths, len(ranks), oom_kills() > kills)
    result = _said(folder, 0)
    assert result is not None
    return result


def _watch(ranks: Sequence[BaseProcess], folder: Path) -> list[Death]:
    """Until all have ended well, or a moment after one has not: the deaths in their order."""
    deaths: list[Death] = []
    running = {process.sentinel: rank for rank, process in enumerate(ranks)}
    deadline: float | None = None
    while running and (deadline is None or time.monotonic() < deadline):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for sentinel in wait(list(running), left):
            rank = running.pop(int(str(sentinel)))
            ranks[rank].join()
            code, said = ranks[rank].exitcode or 0, _said(folder, rank)
            if said is None or said.status == "failed":
                deaths.append(Death(rank=rank, code=code, said=said))
                deadline = deadline or time.monotonic() + VICTIMS_S
    return deaths


def _wait_for_all(ranks: Sequence[BaseProcess]) -> None:
    deadline = time.monotonic() + VICTIMS_S
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))


def _cause(deaths: Sequence[Death], ranks: int, kernel_ran_out: bool) -> RankError:
    """The death that explains the others.

    A process that ended without a word comes before those that complain, and of these one with a reason of
    its own before those that lost the connection to another.
    """
    silent = [death for death in deaths if death.said is None]
    telling = [death for death in deaths if death.said is not None]
    own = [death for death in telling if death.said and death.said.failure is not Failure.CRASHED]
    first = (silent + own + telling)[0]
    who = f"rank {first.rank} of {ranks}"
    if first.said is not None:
        return RankError(first.said.failure or Failure.ERROR, f"{first.said.error} ({who})")
    if first.code == -signal.SIGKILL:
        failure = Failure.OUT_OF_MEMORY if kernel_ran_out else Failure.KILLED
        return RankError(failure, f"{who} {'by the kernel' if kernel_ran_out else 'by SIGKILL'}")
    if first.code < 0:
        return RankError(Failure.CRASHED, f"{who} by {signal.Signals(-first.code).name}")
    return RankError(Failure.CRASHED, f"{who} ended with exit code {first.code} and without a result")


def _said(folder: Path, rank: int) -> RunResult | None:
    path = folder / f"{rank}.json"
    return RunResult.from_json(path.read_text(encoding="utf-8")) if path.exists() else None


def _run(work: Work, text: str, rank: int, meeting: str, parent: int) -> None:
    """A rank: its share of the training, and its result or its failure on disk. Never returns."""
    end_with(parent)
    job = TrainJob.from_json(text)
    folder = job.run_dir / RANKS
    (folder / str(rank)).mkdir(parents=True)
    code = 1
    try:
        result = work(job, _meet(job, rank, Path(meeting) / "store"))
        code = 0
    except BaseException as error:
        traceback.print_exc()
        failure = classify(error)
        result = RunResult(
            run_key=job.spec.run_key,
            status="failed",
            error=describe(failure, one_line(error)),
            failure=failure,
        )
    write_atomically(folder / f"{rank}.json", result.to_json())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the goodbyes of a process group, for which a dead process would be awaited


def _meet(job: TrainJob, rank: int, store: Path) -> Share:
    """Join the others, over a file and not a port: nobody else can, and none is taken already."""
    device = torch.device(job.devices[rank])
    ranks = len(job.devices)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    group: dict[str, Any] = {
        "init_method": f"file://{store}",
        "rank": rank,
        "world_size": ranks,
        "timeout": MEET_WITHIN,
    }
    if device.type == "cpu":
        dist.init_process_group("gloo", **group)
        return Share(rank=rank, ranks=ranks)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, **group)
    return Share(rank=rank, ranks=ranks, hosts=dist.new_group(backend="gloo"))
