"""Loss curves: both readers give the same points, and a diverged run has no perfect ones."""

from pathlib import Path

import polars as pl
import pytest

from sweeps import histories
from sweeps.histories import METRIC, loss_curves

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pl.DataFrame]:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('db')}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("e", "file:///nowhere")
    rows = []
    for i, losses in enumerate([(3.0, 2.0, 1.5), (4.0, float("nan"), float("inf")), (9.0,)]):
        run = client.create_run(experiment).info.run_id
        points = [Metric(METRIC, loss, 1, 10 * (step + 1)) for step, loss in enumerate(losses)]
        client.log_batch(run, metrics=[*points, Metric("lr", 0.1, 1, 10)])
        status = "failed" if i == 2 else "finished"
        rows.append({"run_key": f"k{i}", "mlflow_run_id": run, "status": status})
    table = pl.DataFrame(rows).with_columns(batch_size=pl.lit(8), context_length=pl.lit(128))
    return uri, table


def test_tokens_and_losses_of_finished_runs(tracked: tuple[str, pl.DataFrame]):
    uri, table = tracked
    curves = loss_curves(table, uri)
    kept = curves.filter(pl.col("run_key") == "k0")
    assert kept["D"].to_list() == [10 * 8 * 128.0, 20 * 8 * 128.0, 30 * 8 * 128.0]
    assert kept["loss"].to_list() == [3.0, 2.0, 1.5]
    assert "k2" not in curves["run_key"]


def test_a_diverged_point_is_left_out_and_not_zero(tracked: tuple[str, pl.DataFrame]):
    uri, table = tracked
    diverged = loss_curves(table, uri).filter(pl.col("run_key") == "k1")
    assert diverged["loss"].to_list()[0] == 4.0
    assert diverged["loss"].min() == 4.0


def test_the_client_reads_the_same(tracked: tuple[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch):
    uri, table = tracked
    direct = loss_curves(table, uri).filter(pl.col("loss") < 1e300)
    monkeypatch.setattr(histories, "_SQLITE", "never:///")
    assert loss_curves(table, uri).filter(pl.col("loss") < 1e300).equals(direct)


def test_runs_that_are_not_tracked_have_no_curves(tmp_path: Path, tracked: tuple[str, pl.DataFrame]):
    uri, table = tracked
    unknown = table.with_columns(mlflow_run_id=pl.lit(None, pl.String))
    assert loss_curves(unknown, uri).is_empty()
