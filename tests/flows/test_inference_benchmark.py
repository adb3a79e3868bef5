"""The flow `inference-benchmark` on Prefect's test harness, with a worker that answers at once."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import polars as pl
import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

from flows.inference_benchmark import inference_benchmark
from tasks import inference, inference_points
from tasks.progress import read_progress
from tasks.state import State, open_state
from tasks.tracking import client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SABOTEUR = (sys.executable, str(Path(__file__).parents[1] / "tasks" / "inference_saboteur.py"))
NAME = "inference-tiny"


@pytest.fixture(scope="module")
def state(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    home = tmp_path_factory.mktemp("home") / "state"
    state = open_state(home)
    copyfile(mlflow_template, state.tracking_db)
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("ISOFLOP_HOME", str(home))
        patch.setattr(inference_points, "WORKER", SABOTEUR)
        yield state


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {
        "name": "tiny",
        "sizes": [{"name": f"{d}", "d_model": d, "num_blocks": d // 8, "num_heads": 1} for d in (16, 32, 48)],
        "prefill_lengths": [64, 512],
        "batch_sizes": [1, 3],
        "vocab_size": 61,
        "device": "cpu",
        "resamples": 20,
        "timeout_s": 60,
        "holdout": 0,
        "serving": {"sweep": "quick", "prompt_length": 64, "generated_length": 8},
    }
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def test_failed_points_are_rows_and_the_rest_is_fitted_and_reported(state: State, spec: Path) -> None:
    ended = inference_benchmark(str(spec), return_state=True)
    assert ended.is_completed(), ended.message
    assert "12 of 24 points measured" in ended.message
    folder = state.sweep_dir(NAME)
    table = pl.read_parquet(folder / "measurements.parquet")
    failed = table.filter(pl.col("status") == "failed")
    assert failed["batch_size"].unique().to_list() == [3]
    assert failed["error"].unique().to_list() == ["crashed: by SIGSEGV"]
    one = table.filter(pl.col("arch") == "mlstm", pl.col("d_model") == 32, pl.col("prefill_length") == 64)
    assert one["ttft_s"][0] == pytest.approx(1e-6 * 64 * 32)  # the median of three
    assert one["ttft_spread"][0] == pytest.approx(0.2)
    models = json.loads((folder / "runtime.json").read_text())
    assert set(models) == {"mlstm ttft", "mlstm step_time", "transformer ttft"}
    page = (folder / "inference.html").read_text(encoding="utf-8")
    assert "crashed: by SIGSEGV" in page
    assert "transformer: 6 finished points; the model of step_time needs 7" in page
    assert "sweep quick has no gathered runs here" in page
    progress = read_progress(state, NAME)
    assert progress is not None
    assert (progress.stage, progress.count("failed"), progress.count("finished")) == ("done", 12, 12)


def test_points_are_in_mlflow_with_what_they_are_and_what_they_took(state: State, spec: Path) -> None:
    tracked = client(state.tracking_uri)
    experiment = tracked.get_experiment_by_name(NAME)
    assert experiment is not None
    runs = tracked.search_runs([experiment.experiment_id], "tags.`isoflop.kind` = 'inference point'")
    assert sorted(run.info.status for run in runs) == ["FAILED"] * 12 + ["FINISHED"] * 12
    done = next(run for run in runs if run.info.status == "FINISHED" and run.data.params["d_model"] == "48")
    assert done.data.params["arch"] in ("mlstm", "transformer")
    step = done.data.metrics["step_time_s"]
    assert done.data.metrics["decode_tokens_per_s"] == pytest.approx(1 / step)
    assert done.data.tags["isoflop.device"] == "a made-up device"
    reports = tracked.search_runs([experiment.experiment_id], f"tags.`isoflop.report` = '{NAME}'")
    files = {file.path for file in tracked.list_artifacts(reports[0].info.run_id)}
    assert files == {"inference.html", "measurements.parquet", "runtime.json"}
    assert reports[0].data.metrics["points/failed"] == 12


def test_a_repeat_measures_only_what_failed(state: State, spec: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in state.sweep_dir(NAME).glob("points/*/result.json")}
    ended = inference_benchmark(str(spec), return_state=True)
    assert ended.is_completed(), ended.message
    progress = read_progress(state, NAME)
    assert progress is not None
    assert (progress.count("cached"), progress.count("failed")) == (12, 12)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_the_table_is_fitted_again_without_a_measurement(
    state: State, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "elsewhere.parquet"
    copyfile(state.sweep_dir(NAME) / "measurements.parquet", table)
    monkeypatch.setattr(inference, "gpus", list)  # a table needs no device, whatever the profile measures on
    elsewhere = {"device": "cuda"}
    ended = inference_benchmark(str(spec), table=str(table), overrides=elsewhere, return_state=True)
    assert ended.is_completed(), ended.message
    assert (state.sweep_dir("inference-elsewhere") / "inference.html").exists()
    ended = inference_benchmark(str(spec), table=str(tmp_path / "absent.parquet"), return_state=True)
    assert ended.name == "Refused"
    assert "absent.parquet: cannot be read" in ended.message


def test_what_the_user_has_to_mend_is_one_line(state: State, spec: Path) -> None:
    for overrides, said in (
        ({"batch_size": [1]}, "did you mean batch_sizes"),
        ({"device": "cuda"}, "no NVIDIA GPU is visible"),
        ({"batch_sizes": [3]}, "none of 12 points was measured: crashed: by SIGSEGV"),
    ):
        ended = inference_benchmark(str(spec), overrides=overrides, return_state=True)
        assert ended.name == "Refused"
        assert said in ended.message
        assert "\n" not in ended.message


def test_published_measurements_without_an_import_say_what_to_do(state: State) -> None:
    ended = inference_benchmark("paper", return_state=True)
    assert ended.name == "Refused"
    assert "isoflop import xlstm-scaling-laws PATH" in ended.message
