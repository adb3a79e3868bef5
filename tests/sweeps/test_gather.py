"""Run tables gathered from a real MLflow store."""

from pathlib import Path

import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from sweeps.gather import finished_runs, gather, gather_experiment
from sweeps.plan import Plan, PlannedRun, make_plan
from sweeps.run_table import RUN_TABLE_SCHEMA
from sweeps.spec_files import parse_spec
from tests.sweeps.test_plan import DATA
from tests.sweeps.test_spec import MINIMAL


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(parse_spec({**MINIMAL, "archs": ["mlstm"], "seeds": [0, 1, 2, 3]}), DATA, 256)


@pytest.fixture(scope="module")
def tracking_uri(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("tiny", artifact_location=str(folder / "artifacts"))
    finished, diverged, killed, _ = plan.runs
    _log(client, experiment, finished, "FAILED", {}, {"isoflop.error": "first try was killed"})
    _log(
        client,
        experiment,
        finished,
        "FINISHED",
        {"loss": 2.5, "bpb": 3.6, "epochs": 0.5, "spent_flops": 123.0},
    )
    _log(client, experiment, finished, "FAILED", {}, {"isoflop.error": "a later try failed"})
    _log(client, experiment, diverged, "FAILED", {"loss": 9.0}, {"isoflop.error": "loss is nan at step 3"})
    _log(client, experiment, killed, "RUNNING", {})
    other = client.create_run(experiment, tags={"somebody": "else"})
    client.set_terminated(other.info.run_id)
    return uri


def _log(
    client: MlflowClient,
    experiment: str,
    run: PlannedRun,
    status: str,
    metrics: dict[str, float],
    tags: dict[str, str] | None = None,
) -> None:
    tracked = client.create_run(experiment, tags={**run.tags, **(tags or {})})
    for name, value in metrics.items():
        client.log_metric(tracked.info.run_id, name, value)
    if status != "RUNNING":
        client.set_terminated(tracked.info.run_id, status)


def test_every_planned_run_has_one_row_with_its_fate(plan: Plan, tracking_uri: str) -> None:
    table = gather(plan.table, tracking_uri)
    assert table.schema == pl.Schema(RUN_TABLE_SCHEMA)
    assert table["run_key"].to_list() == [run.run_key for run in plan.runs]
    assert table["status"].to_list() == ["finished", "failed", "failed", "missing"]
    assert table["loss"][0] == 2.5
    assert table["error"].to_list() == [None, "loss is nan at step 3", "run is RUNNING", "never trained"]
    assert table["N"].to_list() == [float(run.N) for run in plan.runs]


def test_flops_spent_are_those_that_a_run_logged(plan: Plan, tracking_uri: str) -> None:
    """Not those that the plan expected."""
    table = gather(plan.table, tracking_uri)
    assert table["spent_flops"].to_list() == [123.0, None, None, None]


def test_only_finished_runs_count_as_cached(plan: Plan, tracking_uri: str) -> None:
    assert set(finished_runs(tracking_uri)) == {plan.runs[0].run_key}


def test_an_experiment_is_a_run_table_without_a_plan(plan: Plan, tracking_uri: str) -> None:
    table = gather_experiment("tiny", tracking_uri)
    planned = gather(plan.table, tracking_uri).filter(pl.col("status") == "finished")
    assert table.equals(planned)


def test_an_unknown_experiment_names_the_known(tracking_uri: str) -> None:
    with pytest.raises(ValueError, match=r"MLflow experiment 'nope': not there; known are Default, tiny"):
        gather_experiment("nope", tracking_uri)
