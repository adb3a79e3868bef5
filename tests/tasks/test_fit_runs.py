"""`isoflop fit`: a foreign table in, a readable table, JSON and a report out."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from sweeps.laws import FitError, LawSettings, fit, from_json, prepare
from sweeps.plan import make_plan
from sweeps.spec_files import parse_spec
from tasks.errors import UserError
from tasks.fit_runs import fit_source, law_settings
from tasks.state import State
from tests.sweeps.test_plan import DATA
from tests.sweeps.test_spec import MINIMAL


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Runs on E + A N^-.34 + B D^-.28, sizes in millions, their own names."""
    C = np.repeat([1e18, 1e19, 1e20], 5)
    N = 0.1 * (C / 6) ** 0.45 * np.tile(np.geomspace(0.25, 4, 5), 3) * 10
    D = C / 6 / N
    noise = np.random.default_rng(0).normal(0, 0.002, len(N))
    loss = (1.69 + 406.4 / N**0.34 + 410.7 / D**0.28) * np.exp(noise)
    path = tmp_path / "their runs.csv"
    pl.DataFrame({"params": N / 1e6, "tokens": D, "ce": loss, "budget": C}).write_csv(path)
    return path


COLUMNS = {"N": "params", "D": "tokens", "loss": "ce"}


def test_a_csv_becomes_json_report_and_text(foreign: Path, tmp_path: Path) -> None:
    settings = LawSettings(resamples=50, target_budgets=(1e22,))
    out = tmp_path / "laws"
    found = fit_source(
        str(foreign), settings, columns=COLUMNS, units={"N": "M"}, arch="mlstm", context_length=8192, out=out
    )
    analysis = from_json(found.analysis.read_text())
    group = analysis.groups[0]
    assert (group.arch, group.context_length, group.n_runs) == ("mlstm", 8192, 15)
    assert f"{group.power_laws['N'].exponent.value:.4g}" in found.text
    assert group.power_laws["N"].exponent.value == pytest.approx(0.4516, abs=0.05)
    assert found.report.read_text().lstrip().lower().startswith("<!doctype html")
    assert pl.read_parquet(out / "runs.parquet").height == 15


def test_results_go_to_a_folder_of_their_own(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fit_source(str(foreign), LawSettings(resamples=0), columns=COLUMNS, units={"N": "M"})
    assert found.analysis == Path("their-runs-laws") / "analysis.json"


def test_what_a_user_gets_wrong_is_one_line(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="column N is missing"):
        fit_source(str(foreign), LawSettings())
    with pytest.raises(UserError, match="need no --column"):
        fit_source("mlflow:sweep", LawSettings(), columns=COLUMNS)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        fit_source(str(foreign), LawSettings(), columns=COLUMNS, units={"N": "M"}, out=blocked / "x")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("law", "newton", "--law newton"),
        ("law", "context", "--law context"),
        ("estimator", "best", "--estimator best"),
        ("delta", "small", "--delta small"),
        ("targets", [-1.0], "--target -1"),
        ("serve", -1.0, "--serve -1"),
    ],
)
def test_bad_options_are_named(option: str, value: object, message: str) -> None:
    given = {
        "law": "chinchilla",
        "estimator": "huber-log",
        "delta": "auto",
        "resamples": 10,
        "level": 0.9,
        "targets": [1e20],
        "seed": 1,
        "profile": ["a"],
        "serve": 1e12,
    }
    assert law_settings(**given).huber_delta == "auto"  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        law_settings(**{**given, option: value})  # type: ignore[arg-type]


def test_an_experiment_that_is_not_there(tracked: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_HOME", str(tracked.home))
    with pytest.raises(UserError, match="absent"):
        fit_source("mlflow:absent", LawSettings(), out=tracked.home / "out")


def test_runs_of_an_experiment(tracked: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in MLflow's database need no options: N, D and shapes come from their tags."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tracked.home))
    spec = {
        **MINIMAL,
        "archs": ["mlstm", "transformer"],
        "budgets": [1e13, 4e13, 1.6e14],
        "ladder": {"shapes": [{"d_model": 32 * k, "num_blocks": 2 + k // 2} for k in (1, 2, 3, 4, 6, 8)]},
    }
    plan = make_plan(parse_spec(spec), DATA, 256)
    client = MlflowClient(tracked.tracking_uri)
    experiment = client.create_experiment("swept", artifact_location=str(tmp_path / "artifacts"))
    noise = np.random.default_rng(0).normal(0, 0.003, len(plan.runs))
    for run, error in zip(plan.runs, noise, strict=True):
        tracked_run = client.create_run(experiment, tags=run.tags).info.run_id
        loss = (0.9 + 60 / run.N**0.34 + 30 / run.D**0.28) * np.exp(error)
        client.log_metric(tracked_run, "loss", float(loss))
        client.set_terminated(tracked_run)
    found = fit_source("mlflow:swept", LawSettings(resamples=30, served_tokens=1e9), out=tmp_path / "out")
    groups = from_json(found.analysis.read_text()).groups
    assert [(group.arch, group.n_runs) for group in groups] == [("mlstm", 18), ("transformer", 18)]
    for group in groups:
        serving = group.diagnostics["serving"][0]
        assert serving.get("decode_cost", serving.get("note")) in (
            "the architecture's own", "no law is identified, so no model can be chosen for serving",
        )  # fmt: skip
    assert pl.read_parquet(tmp_path / "out" / "runs.parquet")["mlflow_run_id"].null_count() == 0
    with pytest.raises(UserError, match="need no --column"):
        fit_source("mlflow:swept", LawSettings(), where={"arch": "mlstm"})


def test_json_holds_every_digit(foreign: Path, tmp_path: Path) -> None:
    """At least 12 significant digits of every coefficient; here all of them."""
    found = fit_source(
        str(foreign), LawSettings(resamples=20), columns=COLUMNS, units={"N": "M"}, out=tmp_path / "out"
    )
    runs = pl.read_parquet(tmp_path / "out" / "runs.parquet")
    again = fit(prepare(runs), LawSettings(resamples=0))
    stored = json.loads(found.analysis.read_text())["result"]["groups"][0]["parametric"][0]["params"]
    for name, estimate in again.params.items():
        assert stored[name]["value"] == pytest.approx(estimate.value, rel=1e-12)
        assert len(repr(stored[name]["value"]).replace(".", "").lstrip("0")) >= 12
