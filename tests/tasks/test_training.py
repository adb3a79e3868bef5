"""Where no training can be started: the first to find out says why, the others do not try."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.plan import PlannedRun
from tasks.errors import UserError
from tasks.launcher import LauncherError
from tasks.leases import Grant, LeasesClosed
from tasks.pipeline import wait_for_all
from tasks.state import State
from tasks.training import Trainer
from tests.sweeps.test_trunks import plan_of

REASON = "trainings cannot be started: ImportError: torch is not installed"


class Room:
    """Room for everybody, until it closes."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()

    @contextmanager
    def take(self, run: PlannedRun) -> Iterator[Grant]:
        yield Grant(device="cpu", descriptor=0)


class Broken:
    """An engine that starts nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        raise LauncherError(REASON)


def test_the_first_training_that_cannot_be_started_ends_the_sweep(tracked: State, tmp_path: Path) -> None:
    plan = plan_of({"kind": "cosine"})
    engine, room = Broken(), Room()

    @contextmanager
    def launch() -> Iterator[Broken]:
        yield engine

    corpus = SimpleNamespace(folder=tmp_path)
    with Trainer(plan.spec, tracked, corpus, room, launch=launch) as trainer:
        with pytest.raises(LauncherError, match="torch is not installed"):
            trainer.complete(plan.runs[0])
        assert room.stopped.is_set()
        for run in plan.runs[1:3]:  # those that have room already
            with pytest.raises(LeasesClosed):
                trainer.complete(run)
        assert engine.asked == 1
        futures = [SimpleNamespace(wait=lambda: None)]
        with pytest.raises(UserError, match="cannot be started: ImportError: torch is not installed"):
            wait_for_all(trainer, futures)  # type: ignore[arg-type]


def test_a_sweep_whose_trainings_start_ends_in_peace(tracked: State, tmp_path: Path) -> None:
    plan = plan_of({"kind": "cosine"})
    with Trainer(plan.spec, tracked, SimpleNamespace(folder=tmp_path), Room()) as trainer:
        wait_for_all(trainer, [])
