"""The whole flow, with real trainings, on Prefect's test harness."""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import pytest
import yaml
from prefect.client.schemas.objects import State as FlowState
from prefect.testing.utilities import prefect_test_harness

from flows.capability_suite import capability_suite
from tasks import tracking
from tasks.progress import read_progress
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


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two architectures, two seeds, a few steps of one task and of text."""
    fields = {
        "name": "tiny-suite",
        "archs": ["lstm", "xlstm[0:1]"],
        "seeds": [0, 1],
        "experiments": {
            "parity": {
                "task": {"kind": "parity", "trained": 6, "measured": [6, 12], "examples": 64},
                "size": {"parameters": 3000, "tolerance": 0.4},
                "recipe": {"steps": 40, "batch_size": 16, "peak_lr": 0.02},
            },
            "text": {
                "task": {
                    "kind": "text",
                    "domains": ["python", "headers"],
                    "max_bytes": 1_500_000,
                    "context_length": 16,
                    "times": 2,
                    "windows": 4,
                    "domain_tokens": 64,
                },
                "size": {"parameters": 12_000, "tolerance": 0.4},
                "recipe": {"steps": 2, "batch_size": 4, "peak_lr": 0.01},
            },
        },
        "resources": {"device": "cpu", "runs_in_parallel": 2, "timeout_s": 300},
    }
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def run(profile: Path, **overrides: object) -> FlowState:
    return capability_suite(str(profile), overrides or None, return_state=True)


def test_a_suite_trains_measures_and_reports_and_then_finds_everything_done(
    state: State, profile: Path
) -> None:
    ended = run(profile)
    assert ended.is_completed(), ended.message
    folder = state.sweep_dir("tiny-suite")
    page = (folder / "report.html").read_text()
    assert "tracks state" in page
    kept = json.loads((folder / "results.json").read_text())["runs"]
    assert [row["status"] for row in kept] == ["finished"] * 8
    parity = next(row for row in kept if row["experiment"] == "parity")
    assert set(parity["measures"]) >= {"loss", "accuracy", "accuracy/6", "accuracy/12", "answer_loss/12"}
    text = next(row for row in kept if row["experiment"] == "text")
    assert {"domain_loss/python", "domain_loss/headers", "position_loss/16", "position_loss/32"} <= set(
        text["measures"]
    )

    again = run(profile)
    assert again.is_completed(), again.message
    progress = read_progress(state, "tiny-suite")
    assert progress is not None
    assert progress.count("cached") == 8
    assert json.loads((folder / "results.json").read_text())["runs"] == kept


def test_runs_are_in_mlflow_with_their_measurements(state: State, profile: Path) -> None:
    run(profile)
    client = tracking.client(state.tracking_uri)
    found = client.search_runs(
        [tracking.ensure_experiment(state, "tiny-suite")], "tags.`isoflop.capability` = 'parity'"
    )
    assert len(found) == 4
    assert all({"loss", "accuracy/12", "wall_time_s"} <= set(one.data.metrics) for one in found)
    assert all(one.data.params["task.kind"] == "parity" for one in found)


def test_a_mistake_in_the_profile_is_one_line(state: State, profile: Path) -> None:
    ended = run(profile, **{"experiments.parity.recipe.stepz": 3})
    assert ended.name == "Refused"
    assert ended.message is not None
    assert "recipe.stepz: unknown key; did you mean steps?" in ended.message
