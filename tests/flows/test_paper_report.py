"""The flow `scaling-report` on the imported study, on Prefect's test harness."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.scaling_report import scaling_report
from tasks import study
from tasks.importing import PAPER, STUDY, TABLES
from tasks.progress import read_progress
from tasks.state import State, open_state
from tasks.tracking import client
from tests.sweeps.study.paper import headline_cells, read_paper

pytestmark = pytest.mark.slow

FASTER = {"laws.resamples": 50}


@pytest.fixture(scope="module")
def state(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    home = tmp_path_factory.mktemp("home") / "state"
    state = open_state(home)
    copyfile(mlflow_template, state.tracking_db)
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("ISOFLOP_HOME", str(home))
        patch.setattr(study, "fittable", lambda table: headline_cells())
        patch.setattr(study.os, "cpu_count", lambda: 1)
        yield state


def test_without_an_import_it_says_what_to_do(state: State):
    ended = scaling_report("paper", return_state=True)
    assert ended.name == "Refused"
    assert "isoflop import xlstm-scaling-laws PATH" in ended.message


def test_report_of_the_imported_study(state: State):
    published = read_paper()
    folder = state.sweep_dir(PAPER) / "published"
    folder.mkdir(parents=True)
    for name in TABLES:
        getattr(published, name).write_parquet(folder / f"{name}.parquet")
    ended = scaling_report("paper", overrides=FASTER, return_state=True)
    assert ended.is_completed(), ended.message
    report = state.sweep_dir(PAPER) / "report.html"
    assert str(report) in ended.message
    text = report.read_text(encoding="utf-8")
    assert "Where the authors erred" in text
    assert "runs_tokenparam_mlstm.csv" in text
    pdfs = {path.stem for path in (state.sweep_dir(PAPER) / "figures").glob("*.pdf")}
    assert {"isoflop-8192", "frontier", "overtraining", "times"} <= pdfs
    progress = read_progress(state, PAPER)
    assert progress is not None
    assert progress.stage == "done"
    assert "supported: At equal compute the compute-optimal xLSTM is larger" in progress.message
    experiment = client(state.tracking_uri).get_experiment_by_name(STUDY)
    (run,) = client(state.tracking_uri).search_runs([experiment.experiment_id])
    assert [f.path for f in client(state.tracking_uri).list_artifacts(run.info.run_id)] == ["report.html"]
