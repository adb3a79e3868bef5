"""A sweep that is cut by its time limit, packed, and goes on in another state folder."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from shutil import copyfile

import polars as pl
import pytest
import yaml
from prefect.client.schemas.objects import State as FlowState
from prefect.testing.utilities import prefect_test_harness

from flows.isoflop_sweep import isoflop_sweep
from sweeps.plan import PlannedRun
from tasks import tracking
from tasks.pack import pack
from tasks.progress import read_progress
from tasks.state import State, open_state
from tasks.time_limit import TimeLimit
from tasks.unpack import unpack

pytestmark = pytest.mark.slow

FIRST = 3
"""Runs of the first slice, of six."""


@pytest.fixture(scope="module")
def spec(tiny: Path) -> Path:
    """One architecture and a hold-out run."""
    fields = yaml.safe_load(tiny.read_text())
    fields |= {"name": "sliced", "archs": ["mlstm"], "holdout": {"budget_factor": 2}}
    path = tiny.with_name("sliced.yaml")
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[tuple[State, State]]:
    folder = tmp_path_factory.mktemp("homes")
    here, there = open_state(folder / "here"), open_state(folder / "there")
    copyfile(mlflow_template, here.tracking_db)
    with prefect_test_harness(server_startup_timeout=120):
        yield here, there


def sweep(
    spec: Path, home: State, monkeypatch: pytest.MonkeyPatch, limit_s: float | None = None
) -> FlowState:
    monkeypatch.setenv("ISOFLOP_HOME", str(home.home))
    return isoflop_sweep(str(spec), None, limit_s, return_state=True)


def count(home: State, *statuses: str) -> int:
    progress = read_progress(home, "sliced")
    assert progress is not None
    return progress.count(*statuses)  # type: ignore[arg-type]


def losses(home: State) -> dict[str, float]:
    runs = pl.read_parquet(home.sweep_dir("sliced") / "runs.parquet")
    return dict(runs.select("run_key", "loss").iter_rows())


def test_what_was_cut_goes_on_elsewhere_and_nothing_is_trained_twice(
    homes: tuple[State, State], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = homes
    begun: list[str] = []

    def first_ones(
        self: TimeLimit, run: PlannedRun, *, begun: bool, started: list[str] = begun
    ) -> str | None:
        if len(started) >= FIRST:
            return "paused: the sweep's time was up before it could start"
        started.append(run.run_key)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(TimeLimit, "refusal", first_ones)
        paused = sweep(spec, here, patch, limit_s=3600)
    assert (paused.name, paused.is_completed()) == ("Paused", True)
    assert "3 of 6 runs are finished; 3 wait for the next flow run" in str(paused.message)
    assert not (here.sweep_dir("sliced") / "report.html").exists()

    packed = pack(here, tmp_path / "sliced.tar.xz", corpora=True, part_bytes=20_000)
    assert len(packed.files) > 1
    unpack(there, tmp_path / "sliced.tar.xz")
    assert sweep(spec, there, monkeypatch).is_completed()
    assert (count(there, "cached"), count(there, "finished")) == (FIRST, 3 + 1)
    assert sweep(spec, here, monkeypatch).is_completed()
    assert losses(there) == losses(here)

    tracked = tracking.client(there.tracking_uri)
    experiment = tracked.get_experiment_by_name("sliced")
    runs = tracked.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    keys = [run.data.tags[tracking.RUN_KEY] for run in runs if tracking.RUN_KEY in run.data.tags]
    assert len(keys) == len(set(keys)) == 6 + 1

    (entry,) = json.loads((there.sweep_dir("sliced") / "holdout.json").read_text())
    (held,) = (run for run in runs if run.data.tags.get(tracking.RUN_KEY) == entry["prediction"]["run_key"])
    predicted_at = datetime.fromisoformat(entry["prediction"]["predicted_at"])
    assert predicted_at.timestamp() * 1000 <= held.info.start_time
    assert float(held.data.tags["isoflop.predicted.loss"]) == entry["prediction"]["loss"]["value"]
    assert entry["prediction"]["run_key"] not in losses(there)
    assert "came out" in (there.sweep_dir("sliced") / "report.html").read_text()
