"""The whole flow, with real trainings, on Prefect's test harness."""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import polars as pl
import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State as FlowState
from prefect.testing.utilities import prefect_test_harness

from flows.isoflop_sweep import isoflop_sweep
from flows.scaling_report import scaling_report
from tasks import tracking
from tasks.preparation import plan_runs, prepare_data, read_spec
from tasks.progress import SweepProgress, read_progress
from tasks.state import State, open_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def state(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    home = tmp_path_factory.mktemp("home") / "state"
    state = open_state(home)
    copyfile(mlflow_template, state.tracking_db)
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("ISOFLOP_HOME", str(home))
        yield state


def sweep(profile: Path, **overrides: object) -> FlowState:
    return isoflop_sweep(str(profile), overrides or None, return_state=True)


def progress_of(state: State, name: str) -> SweepProgress:
    progress = read_progress(state, name)
    assert progress is not None
    return progress


def task_states(progress: SweepProgress) -> dict[str, str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[progress.flow_run_id]))
        return {run.name: run.state.name for run in client.read_task_runs(flow_run_filter=only)}


@pytest.fixture(scope="module")
def first(state: State, tiny: Path) -> FlowState:
    """The first sweep. One run cannot succeed: a folder stands where its spec is to be written."""
    spec = read_spec(tiny)
    broken = plan_runs(spec, prepare_data(spec, state)).runs[1]
    obstacle = state.run_dir(broken.run_key) / "spec.json"
    obstacle.mkdir(parents=True)
    ended = sweep(tiny)
    obstacle.rmdir()
    return ended


def test_a_failed_run_is_named_and_the_fits_go_on_without_it(state: State, first: FlowState) -> None:
    assert first.is_completed()
    progress = progress_of(state, "tiny")
    assert (progress.count("finished"), progress.count("failed")) == (11, 1)
    (failed,) = [run for run in progress.runs if run.status == "failed"]
    assert f"11 of 12 runs finished, 1 not ({failed.name}: " in first.message
    assert task_states(progress)[f"train {failed.name}"] == "Failed"
    runs = pl.read_parquet(state.sweep_dir("tiny") / "runs.parquet")
    assert runs.filter(pl.col("status") == "finished")["loss"].is_between(1.0, 6.0).all()
    report = (state.sweep_dir("tiny") / "report.html").read_text()
    assert failed.name in report
    analysis = json.loads((state.sweep_dir("tiny") / "analysis.json").read_text())
    assert {group["n_runs"] for group in analysis["result"]["groups"]} == {5, 6}


def test_progress_and_runs_are_in_prefect(state: State, first: FlowState) -> None:
    assert first.is_completed()
    with get_client(sync_client=True) as client:
        found = {artifact.key: artifact for artifact in client.read_artifacts()}
    assert found["progress-sweep-tiny"].data == 100.0
    assert found["progress-sweep-tiny"].description == "1 failed, 11 finished"
    rows = found["runs-sweep-tiny"].data.splitlines()
    assert len(rows) == 2 + 12
    assert "| failed |" in rows[2]
    assert "spec.json" in rows[2]
    assert sum("| finished |" in row for row in rows) == 11


def test_the_report_is_in_mlflow_too(state: State, first: FlowState) -> None:
    assert first.is_completed()
    client = tracking.client(state.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{tracking.REPORT}` = 'tiny'")
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "analysis.json", "runs.parquet"}
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`{tracking.PARENT}` = '{run.info.run_id}'"
    )
    assert len(children) >= 11
    assert run.info.run_name == "tiny"
    assert run.data.tags[tracking.NOTE].startswith("**tiny**")
    assert run.data.metrics["runs/finished"] == 11


def test_a_repeat_trains_only_what_is_not_finished(state: State, tiny: Path, first: FlowState) -> None:
    assert first.is_completed()
    assert sweep(tiny).is_completed()
    again = progress_of(state, "tiny")
    assert (again.count("cached"), again.count("finished")) == (11, 1)
    assert sweep(tiny).is_completed()
    third = progress_of(state, "tiny")
    assert third.count("cached") == 12
    trained = [name for name in task_states(third).items() if name[0].startswith("train ")]
    assert len(trained) == 12
    assert {name for _, name in trained} == {"Cached"}
    client = tracking.client(state.tracking_uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], f"tags.`{tracking.RUN_KEY}` != ''")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 12


def test_a_run_that_diverged_is_never_tried_again(state: State, tiny: Path) -> None:
    wild = {"base": 1e30, "reference_width": 16, "maximum": 1e30}
    changes = {"name": "wild", "archs": ["transformer"], "budgets": [1e8], "learning_rate": wild}
    client = tracking.client(state.tracking_uri)
    for _ in range(2):
        ended = sweep(tiny, **changes)
        assert ended.name == "Refused"
        assert "none of 3 runs is finished" in ended.message
        assert "diverged: train loss" in ended.message
        progress = progress_of(state, "wild")
        assert [run.attempt for run in progress.runs] == [1, 1, 1]
        experiment = client.get_experiment_by_name("wild").experiment_id
        trainings = client.search_runs([experiment], f"tags.`{tracking.RUN_KEY}` != ''")
        assert [run.data.tags[tracking.FAILURE] for run in trainings] == ["diverged"] * 3


def test_reports_come_again_from_cached_runs_and_from_tables(
    state: State, tiny: Path, first: FlowState, tmp_path: Path
) -> None:
    assert first.is_completed()
    report = state.sweep_dir("tiny") / "report.html"
    report.unlink()
    assert scaling_report(str(tiny), return_state=True).is_completed()
    assert report.exists()
    table = tmp_path / "elsewhere.csv"
    runs = pl.read_parquet(state.sweep_dir("tiny") / "runs.parquet").filter(pl.col("status") == "finished")
    # As if published: sizes in millions, none of our columns but those that the fits need.
    scaled = runs.with_columns(N=pl.col("N") * 1e3, D=pl.col("D") * 1e3, budget=pl.col("budget") * 1e6)
    scaled.select("arch", "context_length", "N", "D", "loss", "budget").write_csv(table)
    ended = scaling_report(str(tiny), table=str(table), return_state=True)
    assert ended.is_completed(), ended.message
    assert (state.sweep_dir("elsewhere") / "report.html").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"budgets": [-1]}, "budgets.0 = -1: Input should be greater than 0"),
        ({"data.paths": ["/no/such/folder"], "data.name": "none"}, "/no/such/folder"),
        ({"budgets": [1e6]}, "budgets: 1e+06 FLOPs buy"),
    ],
)
def test_a_bad_spec_is_refused_in_one_line_before_anything_trains(
    state: State, tiny: Path, overrides: dict[str, object], message: str
) -> None:
    ended = sweep(tiny, name="bad", **overrides)
    assert (ended.type.value, ended.name) == ("FAILED", "Refused")
    assert message in ended.message
    assert "\n" not in ended.message


def test_a_sweep_that_is_under_way_is_not_started_twice(state: State, tiny: Path) -> None:
    with FileLock(state.lock("sweep-busy")):
        ended = sweep(tiny, name="busy")
    assert ended.name == "Refused"
    assert ended.message == "sweep busy: another flow run is at work on it; wait for it, or cancel it"


def test_a_report_before_any_sweep_says_what_to_do(state: State, tiny: Path) -> None:
    ended = scaling_report(str(tiny), overrides={"name": "unplanned"}, return_state=True)
    assert ended.message == "sweep unplanned: was never planned here; run `isoflop sweep unplanned` first"
