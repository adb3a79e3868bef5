"""What stands in MLflow after a training, and a store that is away for a while."""

import dataclasses
import sys

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from tests.xlstm.training_jobs import STEPS, history, weights
from xlstm.data import Corpus
from xlstm.models import build_model
from xlstm.run_spec import canonical_json
from xlstm.training.failures import Failure
from xlstm.training.job import RunResult, TrainJob
from xlstm.training.run import train
from xlstm.training.tracking import flatten


def test_a_run_is_tracked_with_all_that_determines_it(job: TrainJob, corpus: Corpus) -> None:
    result = train(job)
    assert result.status == "finished"
    assert result.mlflow_run_id is not None
    run = MlflowClient(job.tracking_uri).get_run(result.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    expected = flatten(dataclasses.asdict(job.spec))
    assert run.data.params == {key: str(value) for key, value in expected.items()}
    tags = run.data.tags
    assert tags["isoflop.run_key"] == job.spec.run_key
    assert tags["isoflop.spec"] == canonical_json(job.spec)
    assert tags["isoflop.data_hash"] == corpus.spec().content_hash
    assert tags["isoflop.budget"] == "1e9"
    assert tags["isoflop.device"] == "cpu"
    assert tags["isoflop.version.torch"] == torch.__version__
    assert "isoflop.git_revision" in tags
    assert run.data.metrics.keys() == result.metrics().keys() | {"optimizer/lr", "optimizer/grad_norm"}
    for name, value in result.metrics().items():
        assert run.data.metrics[name] == value, name


def test_the_tracked_model_loads_through_mlflow_alone(
    job: TrainJob, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pandas", None)  # as in a training's process
        without.delitem(sys.modules, "mlflow.pyfunc", raising=False)
        result = train(job)
    from mlflow import pyfunc, set_tracking_uri

    set_tracking_uri(job.tracking_uri)
    loaded = pyfunc.load_model(f"runs:/{result.mlflow_run_id}/model")
    tokens = torch.tensor(corpus.validation[:16].astype("int64"))[None]
    model = build_model(job.spec.model)
    model.load_state_dict(weights(job))
    with torch.inference_mode():
        expected = model.eval()(tokens).float().numpy()
    assert (loaded.predict(tokens.numpy()) == expected).all()


def test_the_corpus_and_a_description_stand_in_the_run(job: TrainJob, corpus: Corpus) -> None:
    run = MlflowClient(job.tracking_uri).get_run(train(job).mlflow_run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == (corpus.spec().name, corpus.spec().content_hash[:36])
    assert run.data.tags["mlflow.note.content"].startswith(f"{job.spec.model.arch}, ")


def test_the_corpus_goes_by_what_people_call_it(job: TrainJob) -> None:
    called = dataclasses.replace(job, data_label="poems", run_dir=job.run_dir / "poems")
    run = MlflowClient(job.tracking_uri).get_run(train(TrainJob.from_json(called.to_json())).mlflow_run_id)
    assert run.inputs.dataset_inputs[0].dataset.name == "poems"
    assert run.data.tags["mlflow.note.content"].endswith(" tokens of poems")


def test_the_machine_is_watched(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm.training.system_metrics.SAMPLE_EVERY_S", 0.05)
    metrics = MlflowClient(job.tracking_uri).get_run(train(job).mlflow_run_id).data.metrics
    assert metrics["system/cpu_utilization_percentage"] >= 0
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_trainings_that_begin_at_once_name_the_same_data(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's insert of a data set races; the second finds it there when it asks again."""
    log_inputs, calls = MlflowClient.log_inputs, []

    def race(client: MlflowClient, *args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")
        log_inputs(client, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_inputs", race)
    result = train(job)
    assert len(calls) == 2
    run = MlflowClient(job.tracking_uri).get_run(result.mlflow_run_id or "")
    assert len(run.inputs.dataset_inputs) == 1


class Store:
    """Stands between a training and its store, and loses the connection for a number of calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
        self.left = calls
        log_batch = MlflowClient.log_batch

        def lossy(client: MlflowClient, *args: object, **kwargs: object) -> object:
            if self.left > 0 and "metrics" in kwargs:
                self.left -= 1
                raise MlflowException(
                    "(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE
                )
            return log_batch(client, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(MlflowClient, "log_batch", lossy)
        monkeypatch.setattr("xlstm.training.tracking.FLUSH_EVERY_S", 0.0)


def test_a_store_that_comes_back_loses_no_metric(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch, calls=5)
    result = train(job)
    assert store.left == 0
    steps = [step for step, _ in history(job, result.mlflow_run_id or "", "train_loss")]
    assert steps == [*range(1, STEPS + 1), STEPS]


def test_a_store_that_stays_away_fails_the_run(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Store(patch, calls=10**9)
        patch.setattr("xlstm.training.tracking.PATIENCE_S", -1.0)
        with pytest.raises(MlflowException):
            train(job)
    result = RunResult.from_json((job.run_dir / "result.json").read_text())
    assert result.failure is Failure.DATABASE_LOST
    assert train(job).status == "finished"
    client = MlflowClient(job.tracking_uri)
    lost = client.get_run(result.mlflow_run_id or "")
    assert (lost.info.status, lost.data.tags["isoflop.failure"]) == ("KILLED", "database lost")
