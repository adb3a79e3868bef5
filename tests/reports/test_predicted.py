"""Hold-out runs in the report."""

import math
from dataclasses import replace

import polars as pl
import pytest

from reports import render
from reports.predicted import predicted_runs, verdicts
from reports.view import View, make_view
from sweeps.laws.types import Analysis, Estimate
from sweeps.predicted import Outcome, Prediction
from tests.reports import synthetic

SAID = Prediction(
    run_key="k",
    run_name="transformer-hold-out",
    arch="transformer",
    context_length=128,
    budget=3e12,
    N=234_048.0,
    D=2.136e6,
    train_flops=2.9995e12,
    loss=Estimate(value=1.5, low=1.45, high=1.55),
    law_loss=Estimate(value=1.5, low=1.47, high=1.53),
    method="chinchilla law, Huber",
    optimum_N=250_000.0,
    n_runs=18,
    largest_budget=1e12,
    predicted_at="2026-01-02T03:04:05+00:00",
)
FINISHED = Outcome(prediction=SAID, observed=1.53, status="finished")
OPEN = Outcome(prediction=SAID, observed=None, status="missing", error="never trained")
BROKEN = Outcome(prediction=SAID, observed=None, status="failed", error="diverged: at step 3")


def view_of(runs: pl.DataFrame, analysis: Analysis, *outcomes: Outcome) -> View:
    return make_view(runs, analysis, synthetic.provenance(), None, outcomes)


def test_prediction_interval_and_outcome_stand_in_one_row(runs: pl.DataFrame, analysis: Analysis) -> None:
    (row,) = predicted_runs(view_of(runs, analysis, FINISHED)).rows
    assert [cell.text for cell in row] == [
        "Transformer", "3.0e12", "3 x", "234 k", "2.14 M", "2 Jan 2026, 03:04:05 UTC", "1.500",
        "1.450 to 1.550", "1.530", "2.00%", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize(("outcome", "text"), [(OPEN, "not trained yet"), (BROKEN, "diverged: at step 3")])
def test_a_run_without_a_loss_says_why(
    runs: pl.DataFrame, analysis: Analysis, outcome: Outcome, text: str
) -> None:
    view = view_of(runs, analysis, outcome)
    (row,) = predicted_runs(view).rows
    assert text in [cell.text for cell in row]
    assert verdicts(view) == []


def test_the_verdict_is_a_sentence(runs: pl.DataFrame, analysis: Analysis) -> None:
    missed = replace(FINISHED, observed=1.6)
    blind = replace(FINISHED, prediction=replace(SAID, loss=Estimate(value=1.5, low=math.nan, high=math.nan)))
    assert verdicts(view_of(runs, analysis, FINISHED, missed, blind)) == [
        "Transformer at 3 times the largest budget: 1.500 (1.450 to 1.550) was predicted, 1.530 came out,"
        " 2.00% off, inside the interval.",
        "Transformer at 3 times the largest budget: 1.500 (1.450 to 1.550) was predicted, 1.600 came out,"
        " 6.67% off, outside the interval.",
        "Transformer at 3 times the largest budget: 1.500 (no interval) was predicted, 1.530 came out,"
        " 2.00% off.",
    ]


def test_two_architectures_at_one_budget_are_held_against_each_other(
    runs: pl.DataFrame, analysis: Analysis
) -> None:
    other = replace(SAID, arch="mlstm", loss=Estimate(value=1.9, low=1.8, high=2.0))
    elsewhere = replace(other, budget=6e12)
    view = view_of(
        runs, analysis, FINISHED, replace(FINISHED, prediction=other, observed=1.7),
        replace(FINISHED, prediction=elsewhere, observed=1.6), replace(OPEN, prediction=other),
    )  # fmt: skip
    assert verdicts(view)[-1] == (
        "Between them: the Transformer was predicted −0.400 nats per byte against the mLSTM, and came out at"
        " −0.170."
    )
    assert sum("Between them" in sentence for sentence in verdicts(view)) == 1
    words = replace(view, provenance=synthetic.provenance(data={"tokenizer": "bpe:4096"}))
    worse = replace(words, predicted=words.predicted[1::-1])
    assert verdicts(worse)[-1] == (
        "Between them: the mLSTM was predicted +0.400 nats per token against the Transformer, and came out at"
        " +0.170."
    )


def test_the_page_shows_them_and_goes_without(runs: pl.DataFrame, analysis: Analysis, page: str) -> None:
    shown = render(runs, analysis, synthetic.provenance(), predicted=(FINISHED,))
    assert "was predicted, 1.530 came out" in shown
    assert 'id="predicted-runs"' in shown or "predicted-runs" in shown
    assert "was predicted" not in page
