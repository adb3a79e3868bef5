"""The faults: what is done, and what the tracker must call it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from sweeps.plan import PlannedRun
from tests.faults.saboteur import pid_file, plan_file
from tests.faults.sweep import Sweep
from xlstm.training.failures import Failure
from xlstm.training.job import CHECKPOINT

LOCKED_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault that comes from outside, while a run trains: whether it still met something."""

    strike: Callable[[Sweep, int], bool]
    """Given the process of the training."""
    kills_flow: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault."""

    name: str
    failure: Failure | None
    """What the run's attempt is to be called; None where no attempt may fail."""
    blow: Blow | None = None
    """None for those that the saboteur arms within the training."""
    exact: bool = True
    """Whether the losses stay the same to the last bit; a smaller micro-batch adds up in another order."""
    final: bool = False
    """Whether the run stays failed: it is not tried again by itself."""


def _send(number: signal.Signals) -> Callable[[Sweep, int], bool]:
    def strike(sweep: Sweep, pid: int) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    return strike


def _kill_zygote(sweep: Sweep, pid: int) -> bool:
    try:
        psutil.Process(psutil.Process(pid).ppid()).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _lock_database(sweep: Sweep, pid: int) -> bool:
    """Another process writes for seconds, as a backup or a migration does."""
    with closing(sqlite3.connect(sweep.state.tracking_db, timeout=30)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_S)
        database.rollback()
    return True


def _flow_of(pid: int) -> int:
    return psutil.Process(psutil.Process(pid).ppid()).ppid()


def _kill_flow(sweep: Sweep, pid: int) -> bool:
    try:
        os.kill(_flow_of(pid), signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def _power_cut(sweep: Sweep, pid: int) -> bool:
    """Flow, zygote and trainings at once; and half of every checkpoint did not reach the disk."""
    try:
        flow = psutil.Process(_flow_of(pid))
        family = [flow, *flow.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for run in sweep.plan.runs:
        checkpoint = sweep.state.run_dir(run.run_key) / CHECKPOINT
        if checkpoint.exists():
            os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    return True


KINDS = (
    Kind(name="segfault", failure=Failure.CRASHED),
    Kind(name="kill", failure=Failure.KILLED, blow=Blow(strike=_send(signal.SIGKILL))),
    Kind(name="gpu memory", failure=Failure.OUT_OF_GPU_MEMORY, exact=False),
    Kind(name="nan", failure=Failure.DIVERGED, final=True),
    Kind(name="disk full", failure=Failure.DISK_FULL),
    Kind(name="database lost", failure=Failure.DATABASE_LOST),
    Kind(name="flow killed", failure=Failure.KILLED, blow=Blow(strike=_kill_flow, kills_flow=True)),
    Kind(name="hang", failure=Failure.HUNG),
    Kind(name="host memory", failure=Failure.OUT_OF_MEMORY, exact=False),
    Kind(name="zygote killed", failure=Failure.KILLED, blow=Blow(strike=_kill_zygote)),
    Kind(name="abort", failure=Failure.CRASHED),
    Kind(name="exit", failure=Failure.CRASHED),
    Kind(name="stopped", failure=Failure.STOPPED, blow=Blow(strike=_send(signal.SIGTERM))),
    Kind(name="frozen", failure=Failure.HUNG, blow=Blow(strike=_send(signal.SIGSTOP))),
    Kind(name="database locked", failure=None, blow=Blow(strike=_lock_database)),
    Kind(name="power cut", failure=Failure.KILLED, blow=Blow(strike=_power_cut, kills_flow=True)),
    Kind(name="deaf hang", failure=Failure.HUNG),
)
SHORT = 7
"""The first so many stand for the rest where time is short."""


def write_down(sweep: Sweep, run: PlannedRun, kind: Kind, rng: Random) -> None:
    """Have the saboteur break a run at some step."""
    fault = {"kind": kind.name, "step": rng.randrange(run.spec.steps - 1)}
    plan_file(sweep.state.home, run.run_key).write_text(json.dumps(fault))


class Striker:
    """Waits for a run to train, and some time more, then strikes; a context manager around the sweep."""

    def __init__(self, sweep: Sweep, run: PlannedRun, blow: Blow, delay_s: float) -> None:
        self.sweep, self.run, self.blow, self.delay_s = sweep, run, blow, delay_s
        self.hit = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> "Striker":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _wait(self) -> None:
        said = pid_file(self.sweep.state.home, self.run.run_key)
        while not said.exists():
            if self._over.wait(0.01):
                return
        pid = int(said.read_text())
        if not self._over.wait(self.delay_s):
            self.hit = self.blow.strike(self.sweep, pid)


def start_and_kill(sweep: Sweep, spec_file: Path, run: PlannedRun, blow: Blow, delay_s: float) -> bool:
    """A flow in a process of its own, struck; returns when it has ended, and whether the blow met it."""
    with Striker(sweep, run, blow, delay_s) as striker, start_flow(sweep, spec_file) as flow:
        flow.wait()
    return striker.hit


def start_flow(sweep: Sweep, spec_file: Path) -> subprocess.Popen[bytes]:
    """A flow in a process of its own."""
    program = Path(__file__).with_name("sweep.py")
    return subprocess.Popen(
        [sys.executable, str(program), str(sweep.state.home), str(spec_file)], stdout=subprocess.DEVNULL
    )
