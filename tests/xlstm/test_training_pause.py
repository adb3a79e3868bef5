"""A training whose sweep's time is up: a checkpoint, the truth in the tracker, and no step trained twice."""

import dataclasses
import time

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from tests.xlstm.training_jobs import elsewhere, history, weights
from xlstm.data import TokenStream
from xlstm.training.failures import Failure, StoppedError
from xlstm.training.job import CHECKPOINT, RunResult, TrainJob
from xlstm.training.run import train


def test_a_paused_run_goes_on_where_it_was_bit_identically(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = elsewhere(job, "whole")
    uninterrupted = train(whole)
    cut = elsewhere(job, "cut")
    trained: list[int] = []
    fetch = TokenStream.batch

    def batch(self: TokenStream, step: int) -> np.ndarray:
        trained.append(step)
        return fetch(self, step)

    monkeypatch.setattr(TokenStream, "batch", batch)
    monkeypatch.setattr("xlstm.training.callbacks.time.time", lambda: 2e9 + 1e8 * (len(trained) >= 11))
    with pytest.raises(StoppedError, match=r"paused at step 1\d of 24, when") as ended:
        train(dataclasses.replace(cut, pause_at=2.05e9))
    assert ended.value.failure is Failure.PAUSED
    result = RunResult.from_json((cut.run_dir / "result.json").read_text())
    assert (result.status, result.failure, result.error) == ("failed", Failure.PAUSED, str(ended.value))
    assert (cut.run_dir / CHECKPOINT).exists()

    stopped_at = int(str(ended.value).split()[3])
    trained.clear()
    resumed = train(cut)
    assert trained[0] == stopped_at
    assert (resumed.loss, resumed.train_loss) == (uninterrupted.loss, uninterrupted.train_loss)
    for name, tensor in weights(whole).items():
        assert tensor.equal(weights(cut)[name]), name
    ids = uninterrupted.mlflow_run_id or "", resumed.mlflow_run_id or ""
    for key in ("loss", "train_loss", "optimizer/lr"):
        assert history(whole, ids[0], key) == history(cut, ids[1], key), key
    tags = MlflowClient(job.tracking_uri).get_run(result.mlflow_run_id or "").data.tags
    assert tags["isoflop.failure"] == "paused"


def test_a_run_that_ends_in_time_is_not_paused(job: TrainJob) -> None:
    assert train(dataclasses.replace(job, pause_at=time.time() + 3600)).status == "finished"
