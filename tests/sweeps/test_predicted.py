"""Hold-out runs on a known surface: where they lie, what is said of them, and what came of it."""

import math
from dataclasses import replace

import polars as pl
import pytest

from sweeps.laws import analyse
from sweeps.laws.types import Analysis, Estimate
from sweeps.plan import make_plan
from sweeps.predicted import Outcome, Prediction, hold_out_runs, predict_run
from sweeps.spec import SweepSpec
from sweeps.spec_files import parse_spec
from tests.sweeps.test_plan import DATA
from tests.sweeps.test_spec import MINIMAL
from xlstm.accounting import count_parameters

SURFACE = {"E": 0.7, "A": 36.0, "alpha": 0.42, "B": 108.0, "beta": 0.345}
NOW = "2026-01-02T03:04:05+00:00"


def true_loss(N: float, D: float) -> float:
    return SURFACE["E"] + SURFACE["A"] * N ** -SURFACE["alpha"] + SURFACE["B"] * D ** -SURFACE["beta"]


@pytest.fixture(scope="module")
def spec() -> SweepSpec:
    shapes = [{"d_model": d, "num_blocks": 2, "num_heads": 1} for d in (16, 24, 32, 48, 64, 96, 128)]
    fields = {
        **MINIMAL,
        "archs": ["transformer"],
        "budgets": [1e12, 3e12, 1e13],
        "ladder": {"shapes": shapes, "ffn_multiple_of": 8},
        "laws": {"resamples": 200},
        "holdout": {"budget_factor": 3},
    }
    return parse_spec(fields)


@pytest.fixture(scope="module")
def analysis(spec: SweepSpec) -> Analysis:
    """Of the planned runs, with losses from the surface and a little noise."""
    table = make_plan(spec, DATA, 256).table.with_row_index("i")
    noise = pl.col("i").map_elements(lambda i: 0.002 * math.sin(12.9898 * i), return_dtype=pl.Float64)
    loss = (
        SURFACE["E"]
        + SURFACE["A"] * pl.col("N") ** -SURFACE["alpha"]
        + SURFACE["B"] * pl.col("D") ** -SURFACE["beta"]
    )
    runs = table.with_columns(loss=loss * noise.exp(), status=pl.lit("finished"))
    return analyse(runs, spec.law_settings())


@pytest.fixture(scope="module")
def said(spec: SweepSpec, analysis: Analysis) -> Prediction:
    (run,) = hold_out_runs(spec, analysis, DATA, 256)
    return predict_run(run, analysis, NOW)


def test_it_lies_at_the_factor_with_the_rung_nearest_to_the_optimum(
    spec: SweepSpec, analysis: Analysis, said: Prediction
) -> None:
    (run,) = hold_out_runs(spec, analysis, DATA, 256)
    assert (run.budget, said.budget, said.largest_budget) == (3e13, 3e13, pytest.approx(1e13))
    assert run.run_key == said.run_key
    assert run.run_key not in {planned.run_key for planned in make_plan(spec, DATA, 256).runs}
    sizes = {count_parameters(planned.spec.model) for planned in make_plan(spec, DATA, 256).runs}
    nearest = min(sizes, key=lambda N: abs(math.log(N / said.optimum_N)))
    assert run.N == said.N == nearest


def test_the_law_of_the_grid_predicts_the_surface(said: Prediction) -> None:
    truth = true_loss(said.N, said.D)
    assert said.loss.value == pytest.approx(truth, rel=0.01)
    assert said.loss.low < truth < said.loss.high
    assert said.loss.low <= said.law_loss.low < said.law_loss.high <= said.loss.high
    assert said.predicted_at == NOW


def test_the_record_of_the_run_shows_what_was_said(said: Prediction) -> None:
    assert float(said.tags["isoflop.predicted.loss"]) == said.loss.value
    assert said.tags["isoflop.predicted.at"] == NOW
    assert Prediction.from_dict(said.to_dict()) == said


def test_without_an_interval_of_the_law_another_method_answers(spec: SweepSpec, analysis: Analysis) -> None:
    (group,) = analysis.groups
    first = replace(group.parametric[0], draws=None)
    blind = replace(analysis, groups=(replace(group, parametric=(first, *group.parametric[1:])),))
    (run,) = hold_out_runs(spec, blind, DATA, 256)
    said = predict_run(run, blind, NOW)
    assert said.method.startswith("L* by ")
    assert math.isfinite(said.loss.low)


@pytest.mark.parametrize(
    ("observed", "low", "high", "inside", "miss"),
    [
        (2.0, 1.9, 2.1, True, 0.0),
        (2.2, 1.9, 2.1, False, 0.1),
        (2.2, math.nan, math.nan, None, 0.1),
        (None, 1.9, 2.1, None, None),
    ],
)
def test_the_outcome(
    said: Prediction, observed: float | None, low: float, high: float, inside: bool | None, miss: float | None
) -> None:
    made = replace(said, loss=Estimate(value=2.0, low=low, high=high))
    outcome = Outcome(prediction=made, observed=observed, status="finished")
    assert outcome.inside is inside
    assert outcome.miss == (None if miss is None else pytest.approx(miss))


def test_the_budget_is_a_target_of_the_fits(spec: SweepSpec) -> None:
    assert spec.law_settings().target_budgets == (3e13,)
    assert parse_spec({**MINIMAL}).law_settings().target_budgets == ()
