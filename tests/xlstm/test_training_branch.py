"""Runs that branch off a trunk: the losses of the same runs trained alone, every step trained once."""

import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.xlstm.training_jobs import MLSTM, TRANSFORMER, elsewhere, history, stop_at, weights
from xlstm.accounting import training_flops
from xlstm.config import ModelConfig
from xlstm.data import TokenStream
from xlstm.run_spec import OptimizerSpec
from xlstm.training import resuming
from xlstm.training.branch import branch_point, starts
from xlstm.training.failures import StoppedError
from xlstm.training.job import RunResult, TrainJob
from xlstm.training.run import train
from xlstm.training.share import Share
from xlstm.trunk import TrunkJob, branch_step, trunk_key

POINTS = (8, 16, 24)
"""Where runs of 10, 20 and 30 steps branch, each cooling down for a fifth."""


def branches(job: TrainJob, model: ModelConfig = TRANSFORMER) -> list[TrainJob]:
    """Three budgets of one model, with a trunk in a folder of its own."""
    trunk = TrunkJob(folder=job.run_dir.with_name("trunk"), leave_at=POINTS)
    jobs = []
    for steps in (10, 20, 30):
        optimizer = OptimizerSpec(
            peak_lr=3e-3, warmup_steps=4, cooldown_steps=steps // 5, cosine_floor=1.0, schedule="wsd"
        )
        run = elsewhere(job, f"branch{steps}", model=model, steps=steps, optimizer=optimizer)
        jobs.append(dataclasses.replace(run, trunk=trunk))
    assert len({trunk_key(run.spec) for run in jobs}) == 1
    assert len({run.spec.run_key for run in jobs}) == 3
    assert tuple(branch_step(run.spec) for run in jobs) == POINTS
    return jobs


def alone(run: TrainJob) -> TrainJob:
    """The same run without a trunk, in a folder of its own."""
    return dataclasses.replace(run, trunk=None, run_dir=run.run_dir.with_name(f"alone{run.spec.steps}"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps whose batches are fetched, in order."""
    steps: list[int] = []
    fetch = TokenStream.batch

    def batch(self: TokenStream, step: int) -> np.ndarray:
        steps.append(step)
        return fetch(self, step)

    monkeypatch.setattr(TokenStream, "batch", batch)
    return steps


def assert_same(run: TrainJob, result: RunResult, other: TrainJob, expected: RunResult) -> None:
    assert result.loss == expected.loss
    assert result.train_loss == expected.train_loss
    for name, tensor in weights(other).items():
        assert tensor.equal(weights(run)[name]), name


@pytest.mark.parametrize("model", [TRANSFORMER, MLSTM], ids=lambda m: m.arch)
def test_branches_are_bit_identical_to_runs_trained_alone(
    job: TrainJob, model: ModelConfig, trained: list[int]
) -> None:
    begun = []
    for run in branches(job, model):
        trained.clear()
        result = train(run)
        begun.append(trained[0])
        left = run.spec.steps - trained[0]
        tokens = left * run.spec.batch_size * run.spec.context_length
        assert result.spent_flops == training_flops(run.spec.model, run.spec.context_length, tokens)
        by_itself = alone(run)
        expected = train(by_itself)
        assert_same(run, result, by_itself, expected)
        assert expected.spent_flops == training_flops(
            run.spec.model, run.spec.context_length, run.spec.tokens
        )
        rates = [history(job, r.mlflow_run_id or "", "optimizer/lr") for r in (result, expected)]
        assert rates[0] == rates[1]
    assert begun == [0, 8, 16]


def test_whoever_comes_first_leaves_the_points_of_the_others(job: TrainJob, trained: list[int]) -> None:
    small, _, large = branches(job)
    train(large)
    assert [branch_point(small.trunk.folder, step).exists() for step in POINTS] == [True] * 3
    trained.clear()
    result = train(small)
    assert trained[0] == 8
    assert_same(small, result, alone(small), train(alone(small)))


def test_a_trunk_that_was_cut_is_taken_up_by_another_run(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    _, middle, large = (dataclasses.replace(run, checkpoint_every_s=0.0) for run in branches(job))
    with monkeypatch.context() as patch:
        stop_at(patch, 13, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(middle)
    assert large.trunk is not None
    assert [path.name.split("-")[0] for path in starts(large.trunk, large.spec)] == ["rolling", "branch"]
    trained.clear()
    result = train(large)
    assert trained[0] in (12, 13)
    assert_same(large, result, alone(large), train(alone(large)))
    trained.clear()
    assert train(middle).loss == train(alone(middle)).loss
    assert trained[0] == 16


def test_a_cooldown_that_was_cut_goes_on_by_itself(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    *_, large = (dataclasses.replace(run, checkpoint_every_s=0.0) for run in branches(job))
    with monkeypatch.context() as patch:
        stop_at(patch, 28, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(large)
    trained.clear()
    result = train(large)
    assert trained[0] in (27, 28)
    assert_same(large, result, alone(large), train(alone(large)))


def test_a_damaged_point_is_put_aside(job: TrainJob, trained: list[int]) -> None:
    small, middle, _ = branches(job)
    train(small)
    assert middle.trunk is not None
    branch_point(middle.trunk.folder, 8).write_bytes(b"PK\x03\x04 half of one")
    trained.clear()
    result = train(middle)
    assert trained[0] == 0
    assert result.loss == train(alone(middle)).loss


def test_a_damaged_point_is_put_aside_for_all_ranks(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes the first puts it aside, and another may look only then."""
    small, middle, _ = branches(job)
    train(small)
    assert middle.trunk is not None
    early, late = (branch_point(middle.trunk.folder, step) for step in (4, 8))
    early.write_bytes(late.read_bytes())
    late.write_bytes(b"PK\x03\x04 half of one")
    decided: queue.Queue[int] = queue.Queue()
    all_there = threading.Barrier(2)

    class Ranks(Share):
        def largest(self, value: float) -> float:
            all_there.wait(60)
            return value

        def agree(self, decide: Callable[[], int]) -> int:
            if self.is_first:
                decided.put(decision := decide())
                return decision
            return decided.get(timeout=60)

    look = resuming.starts

    def starts_later(*arguments: Any) -> list[Path]:
        if threading.current_thread().name.startswith("late"):
            until = time.monotonic() + 1
            while late.exists() and time.monotonic() < until:
                time.sleep(0.01)
        return look(*arguments)

    monkeypatch.setattr(resuming, "starts", starts_later)
    with ThreadPoolExecutor(1, "first") as one, ThreadPoolExecutor(1, "late") as two:
        ranks = [
            pool.submit(resuming.trunk_start, middle, Ranks(rank=rank, ranks=2))
            for rank, pool in enumerate((one, two))
        ]
        assert [rank.result(timeout=60) for rank in ranks] == [early, early]


@pytest.mark.parametrize(
    "change", [{"batch_size": 5}, {"seed": 4}, {"context_length": 8}, {"precision": "bf16"}, {"model": MLSTM}]
)
def test_another_path_is_another_trunk(job: TrainJob, change: dict[str, object]) -> None:
    run = branches(job)[0]
    assert trunk_key(dataclasses.replace(run.spec, **change)) != trunk_key(run.spec)  # type: ignore[arg-type]
    optimizer = dataclasses.replace(run.spec.optimizer, warmup_steps=3)
    assert trunk_key(dataclasses.replace(run.spec, optimizer=optimizer)) != trunk_key(run.spec)


def test_a_job_with_a_trunk_survives_json(job: TrainJob) -> None:
    run = branches(job)[1]
    again = TrainJob.from_json(run.to_json())
    assert again.trunk == run.trunk
    assert isinstance(again.trunk and again.trunk.folder, Path)
