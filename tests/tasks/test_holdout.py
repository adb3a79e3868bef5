"""Predictions of hold-out runs on disk: written before anything is trained, and then kept."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sweeps.laws.types import Analysis
from sweeps.spec import SweepSpec
from tasks.holdout import FILE, make_hold_out, outcomes, read_hold_out
from tasks.state import State
from tests.sweeps.test_plan import DATA
from tests.sweeps.test_predicted import analysis, spec
from xlstm.training.job import ATTEMPT

__all__ = ["analysis", "spec"]

CORPUS = SimpleNamespace(spec=lambda: DATA)


@pytest.fixture
def folder(tracked: State, spec: SweepSpec) -> State:
    tracked.sweep_dir(spec.name).mkdir(parents=True)
    return tracked


def shifted(analysis: Analysis) -> Analysis:
    """The same with a law that says other losses."""
    (group,) = analysis.groups
    first = group.parametric[0]
    E = replace(first.params["E"], value=first.params["E"].value + 0.1)
    law = replace(first, params={**first.params, "E": E})
    return replace(analysis, groups=(replace(group, parametric=(law, *group.parametric[1:])),))


def test_it_is_on_disk_with_the_time_and_reads_back(
    folder: State, spec: SweepSpec, analysis: Analysis
) -> None:
    made = make_hold_out(spec, analysis, CORPUS, 256, folder)  # type: ignore[arg-type]
    assert read_hold_out(folder.sweep_dir(spec.name)) == made
    (run,), (said,) = made.runs, made.predictions
    assert run.tags["isoflop.predicted.loss"] == repr(said.loss.value)
    assert said.predicted_at.endswith("+00:00")


def test_before_its_run_begins_a_better_law_may_speak_again_and_afterwards_not(
    folder: State, spec: SweepSpec, analysis: Analysis
) -> None:
    (first,) = make_hold_out(spec, analysis, CORPUS, 256, folder).predictions  # type: ignore[arg-type]
    made = make_hold_out(spec, shifted(analysis), CORPUS, 256, folder)  # type: ignore[arg-type]
    (second,) = made.predictions
    assert second.loss.value == pytest.approx(first.loss.value + 0.1)
    run_dir = folder.run_dir(made.runs[0].run_key)
    run_dir.mkdir(parents=True)
    (run_dir / ATTEMPT).write_text("an MLflow run")
    kept = make_hold_out(spec, analysis, CORPUS, 256, folder)  # type: ignore[arg-type]
    assert kept.predictions == (second,)


def test_the_outcome_of_what_was_never_trained_is_open(
    folder: State, spec: SweepSpec, analysis: Analysis
) -> None:
    assert outcomes(spec, folder) == []
    make_hold_out(spec, analysis, CORPUS, 256, folder)  # type: ignore[arg-type]
    (outcome,) = outcomes(spec, folder)
    assert (outcome.observed, outcome.status) == (None, "missing")
    assert (folder.sweep_dir(spec.name) / FILE).exists()
