"""What is kept of a sweep's runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sweeps.laws import LawSettings, to_json
from sweeps.run_table import complete
from tasks.errors import UserError
from tasks.results import answer, fit, fit_sources, found, note, save_runs, tally
from tests.reports import synthetic

RUNS = complete(
    pl.DataFrame(
        {
            "run_name": ["x", "y"],
            "arch": ["a", "b"],
            "context_length": [8, 8],
            "N": [1e6, 2e6],
            "D": [1e9, 2e9],
            "loss": [3.0, None],
            "status": ["finished", "failed"],
            "error": [None, "boom"],
        }
    )
)


def test_runs_are_counted_and_kept(tmp_path: Path) -> None:
    assert str(tally(RUNS)) == "1 of 2 runs finished, 1 not (y: boom)"
    assert str(tally(RUNS.head(1))) == "1 of 1 runs finished"
    assert save_runs(RUNS, tmp_path).equals(pl.read_parquet(tmp_path / "runs.parquet"))


def test_a_sweep_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 1 runs is finished, so there is nothing to fit; y: boom"):
        save_runs(RUNS.tail(1), tmp_path)


def test_a_fit_is_kept_until_a_run_or_a_setting_changes(tmp_path: Path) -> None:
    N = [1e6, 2e6, 4e6] * 2
    runs = complete(
        pl.DataFrame(
            {
                "run_key": [f"{k}" for k in range(6)],
                "arch": ["a"] * 6,
                "context_length": [8] * 6,
                "budget": [1e15] * 3 + [4e15] * 3,
                "N": N,
                "D": [b / 6 / n for b, n in zip([1e15] * 3 + [4e15] * 3, N, strict=True)],
                "loss": [3.1, 3.0, 3.05, 2.9, 2.75, 2.7],
                "status": ["finished"] * 6,
            }
        )
    )
    settings = LawSettings(resamples=5)
    first = to_json(fit(runs, settings, tmp_path))
    kept = tmp_path / "analysis.json"
    written = kept.stat().st_mtime_ns
    again = fit(runs, settings, tmp_path)
    assert to_json(again) == first
    assert kept.stat().st_mtime_ns == written
    assert to_json(fit(runs, LawSettings(resamples=6), tmp_path)) != first
    assert kept.stat().st_mtime_ns != written
    changed = runs.with_columns(loss=pl.col("loss") * 1.01)
    assert to_json(fit(changed, settings, tmp_path)) != first
    assert to_json(fit(runs, settings, tmp_path)) == first


IMPORTED = """
import sys
import sweeps.laws, sweeps.run_models
packages = ("sweeps", "xlstm", "kernels", "reports", "tasks")
print("\\n".join(m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in packages))
"""


def test_a_fit_is_kept_by_all_the_code_that_it_runs() -> None:
    """What a process that fits has imported of ours, folders' empty __init__ aside."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    imported = {Path(line) for line in done.stdout.splitlines()}
    missed = imported - set(fit_sources())
    assert {path.name for path in missed} == {"__init__.py"}
    assert {path.parent.name for path in missed} == {"sweeps", "xlstm"}


def test_the_draws_of_the_law_that_answers_are_kept(tmp_path: Path) -> None:
    runs, settings = complete(synthetic.run_table()), LawSettings(resamples=20)
    first, again = fit(runs, settings, tmp_path), fit(runs, settings, tmp_path)
    for one, other in zip(first.groups, again.groups, strict=True):
        assert len(one.parametric[0].draws) == 20
        np.testing.assert_array_equal(one.parametric[0].draws, other.parametric[0].draws)
    (tmp_path / "draws.npz").unlink()
    assert fit(runs, settings, tmp_path).groups[0].parametric[0].draws is not None


def test_fits_from_scratch_are_the_same_bytes(tmp_path: Path) -> None:
    runs, settings = complete(synthetic.run_table()), LawSettings(resamples=20)
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        fit(runs, settings, folder)
    for name in ("analysis.json", "draws.npz"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second


def test_what_a_sweep_found_in_words_and_metrics(tmp_path: Path) -> None:
    runs = complete(synthetic.run_table())
    analysis = synthetic.analysis(synthetic.run_table(), targets=(synthetic.TARGET,))
    metrics = found(runs, analysis)
    assert metrics["runs/finished"] == runs.height
    assert metrics["mlstm-128/optimum_budget"] == synthetic.TARGET
    assert metrics["mlstm-128/optimum_N"] == pytest.approx(synthetic.optimum("mlstm", synthetic.TARGET)[0])
    text = note("quick", "a sweep", runs, analysis)
    assert text.startswith("**quick**: a sweep")
    assert "36 of 36 runs finished" in text


def test_the_answer_names_sizes_tokens_and_who_is_ahead(tmp_path: Path) -> None:
    """Against the closed form of the surfaces that the runs were drawn from."""
    analysis = synthetic.analysis(synthetic.run_table(), targets=(synthetic.TARGET,))
    lines = answer(analysis)
    truth = {arch: synthetic.optimum(arch, synthetic.TARGET) for arch in synthetic.SURFACES}
    for arch, label in (("mlstm", "mLSTM"), ("transformer", "Transformer")):
        (said,) = (
            line for line in lines if line.startswith(f"{label}, context 128, 1.0e13 FLOPs, an extrap")
        )
        found_N, found_D = (read_count(said.split(f"{name}* ")[1].split(" (")[0]) for name in "ND")
        assert found_N == pytest.approx(truth[arch][0], rel=0.1)
        assert found_D == pytest.approx(truth[arch][1], rel=0.1)
    (said,) = (line for line in lines if line.startswith("context 128, 1.0e13 FLOPs: "))
    ahead = "mLSTM" if truth["mlstm"][2] < truth["transformer"][2] else "Transformer"
    assert said.startswith(f"context 128, 1.0e13 FLOPs: {ahead} ")
    lead, low, high = map(float, re.findall(r"\d\.\d{3}", said))
    assert low <= lead <= high
    assert lead == pytest.approx(abs(truth["mlstm"][2] - truth["transformer"][2]), abs=0.01)


def read_count(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"k": 1e3, "M": 1e6, "B": 1e9}[unit]
