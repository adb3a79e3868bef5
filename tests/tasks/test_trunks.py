"""Trunks in a sweep: one run at a time on each, and what is kept of it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.plan import Plan, PlannedRun
from tasks.leases import Grant
from tasks.state import State
from tasks.training import Trainer
from tasks.trunks import Trunks
from tests.sweeps.test_trunks import plan_of
from xlstm.training.job import RunResult, TrainJob
from xlstm.trunk import branch_step, trunk_key


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of({"kind": "wsd", "cooldown_fraction": 0.2})


def same_trunk(plan: Plan) -> list[PlannedRun]:
    key = trunk_key(plan.runs[0].spec)
    return [run for run in plan.runs if trunk_key(run.spec) == key]


def points(state: State, run: PlannedRun) -> list[str]:
    return sorted(path.name for path in state.trunk_dir(trunk_key(run.spec)).glob("*.ckpt"))


def test_a_job_knows_the_points_of_all_runs_of_its_trunk(state: State, plan: Plan) -> None:
    runs = same_trunk(plan)
    trunks = Trunks(state, plan.runs)
    for run in runs:
        job = trunks.job(run)
        assert job is not None
        assert job.folder == state.trunk_dir(trunk_key(run.spec))
        assert job.leave_at == tuple(sorted(branch_step(other.spec) for other in runs))
    cosine = plan_of({"kind": "cosine"}).runs[0]
    assert trunks.job(cosine) is None
    assert trunks.lock(cosine) is None


def test_after_the_last_run_only_the_furthest_point_stays(state: State, plan: Plan) -> None:
    first, second, third = same_trunk(plan)
    trunks = Trunks(state, plan.runs)
    folder = state.trunk_dir(trunk_key(first.spec))
    folder.mkdir(parents=True)
    for name in ("branch-000000010", "branch-000000030", "rolling-000000020"):
        (folder / f"{name}.ckpt").write_bytes(b"x")
    trunks.finished(third)
    trunks.finished(first)
    assert len(points(state, first)) == 3
    trunks.finished(second)
    assert points(state, first) == ["branch-000000030.ckpt"]


def test_runs_of_a_trunk_finished_before_count_too(state: State, plan: Plan) -> None:
    first, second, third = same_trunk(plan)
    folder = state.trunk_dir(trunk_key(first.spec))
    folder.mkdir(parents=True)
    for step in (1, 2):
        (folder / f"branch-{step:09d}.ckpt").write_bytes(b"x")
    Trunks(state, plan.runs).finished(third, before={first.run_key, second.run_key})
    assert points(state, first) == ["branch-000000002.ckpt"]


class Recorder:
    """An engine that notes which trunks are trained at the same time."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.now: list[Path] = []
        self.most = 0
        self.together: list[Path] = []

    def run(self, job: TrainJob, *, timeout_s: float, hang_after_s: float, lease: int | None) -> RunResult:
        assert job.trunk is not None
        with self.guard:
            if job.trunk.folder in self.now:
                self.together.append(job.trunk.folder)
            self.now.append(job.trunk.folder)
            self.most = max(self.most, len(self.now))
        time.sleep(0.05)
        with self.guard:
            self.now.remove(job.trunk.folder)
        return RunResult(run_key=job.spec.run_key, status="finished", loss=1.0)


class Plenty:
    """Room for everybody."""

    stopped = threading.Event()

    def stop(self) -> None:
        """Nobody waits."""

    @contextmanager
    def take(self, run: PlannedRun) -> Iterator[Grant]:
        yield Grant(device="cpu", descriptor=0)


def test_two_branches_that_start_at_the_same_moment_go_one_after_the_other(
    tracked: State, plan: Plan, tmp_path: Path
) -> None:
    engine = Recorder()

    @contextmanager
    def launch() -> Iterator[Recorder]:
        yield engine

    corpus = SimpleNamespace(folder=tmp_path)
    with (
        Trainer(plan.spec, tracked, corpus, Plenty(), launch=launch, runs=plan.runs) as trainer,  # type: ignore[arg-type]
        ThreadPoolExecutor(len(plan.runs)) as threads,
    ):
        outcomes = list(threads.map(trainer.complete, plan.runs))
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert engine.together == []
    assert engine.most > 1  # of different trunks
