"""What the fits say of runs to come, of models to serve, and in words: against the functions behind them."""

import numpy as np
import polars as pl
import pytest

from sweeps.laws import (
    Analysis,
    FitError,
    LawSettings,
    analyse,
    fit,
    fit_points,
    from_json,
    profile_likelihood,
    to_json,
)
from sweeps.laws.design import Design, target_slope
from sweeps.laws.forms import LAWS
from sweeps.laws.inference_cost import decode_cost, serving_optimum, two_n_per_token
from sweeps.laws.outlook import next_runs, surface_of
from sweeps.laws.text import describe
from tests.sweeps.laws.grids import HOFFMANN, closed_form_N, grid, run_table

SETTINGS = LawSettings(resamples=60, target_budgets=(1e22,), profile=("a", "E"), served_tokens=1e11)
POINTS = grid(noise=0.002, sizes=12)


def dear(N: np.ndarray) -> np.ndarray:
    """Decoding at long context: 2 N a token and an attention part."""
    return decode_cost(lambda n: 2 * n + 60 * n**0.8, SETTINGS.served_tokens)(N)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    own = pl.concat([run_table(POINTS, "transformer"), run_table(POINTS, "unknown")])
    return analyse(own, SETTINGS, serving={("transformer", 512): dear})


def table(analysis: Analysis, name: str, group: int = 0) -> list[dict[str, float]]:
    rows = analysis.groups[group].diagnostics[name]
    assert isinstance(rows, list)
    return rows


def test_next_runs_promise_what_a_design_with_them_has(analysis: Analysis) -> None:
    rows = table(analysis, "next_runs")
    surface = surface_of(analysis.groups[0].parametric)
    N, D = (np.append(getattr(POINTS, name), [row[name] for row in rows]) for name in "ND")
    for runs, error in (
        (Design.of(POINTS.N, POINTS.D, surface), rows[0]["error_of_ln_N_before"]),
        (Design.of(N, D, surface), rows[-1]["error_of_ln_N_after"]),
    ):
        assert runs.error(target_slope(runs, 1e22)) == pytest.approx(error, rel=1e-3)
    assert surface.noise == pytest.approx(0.002, rel=0.3)


def test_later_budgets_are_centred_on_the_optimum(analysis: Analysis) -> None:
    for row in table(analysis, "next_budgets"):
        truth = float(closed_form_N(np.array(row["train_flops"]), HOFFMANN))
        assert row["center_N"] == pytest.approx(truth, rel=0.15)
        assert row["N_by_the_law"] == pytest.approx(truth, rel=0.15)
    assert [row["train_flops"] for row in table(analysis, "next_budgets")] == [1e22, 1e23]


def test_serving_counts_the_architectures_own_decoding(analysis: Analysis) -> None:
    law = LAWS["chinchilla"]
    for group, cost, said in ((0, dear, "own"), (1, two_n_per_token(1e11), "2 N a token")):
        fitted = analysis.groups[group].parametric[0]
        params = np.array([fitted.params[name].value for name in law.params])
        row = table(analysis, "serving", group)[-1]
        expected = serving_optimum(law, params, 1e22, cost)
        assert row["loss_of_budget"] == 1e22
        assert row["N"] == pytest.approx(expected.N[0], rel=1e-6)
        assert row["N_low"] < row["N"] < row["N_high"]
        assert row["saving"] == pytest.approx(expected.saving[0], abs=1e-9)
        assert said in str(row["decode_cost"])
    assert table(analysis, "serving", 0)[-1]["N"] < table(analysis, "serving", 1)[-1]["N"]


def test_profiles_stand_beside_the_bootstrap(analysis: Analysis) -> None:
    fitted = fit_points(POINTS, LAWS["chinchilla"], SETTINGS)
    for row, name in zip(table(analysis, "profile"), ("a", "E"), strict=True):
        interval = profile_likelihood(fitted, name).interval
        assert (row["quantity"], row["low"], row["high"]) == (name, interval.low, interval.high)
    with pytest.raises(FitError, match="profile = gamma: chinchilla has A, B, E, a, alpha, b, beta"):
        analyse(run_table(POINTS), LawSettings(profile=("gamma",)))


def test_words_repeat_the_tables(analysis: Analysis) -> None:
    text, fitted = " ".join(describe(analysis).split()), analysis.groups[0].parametric[0]
    held, chosen = table(analysis, "hold_out")[0], table(analysis, "model_selection")[0]
    for sentence in (
        f"{fitted.diagnostics['agreeing_starts']} of 48 starts end here",
        f"condition number of J'J {fitted.diagnostics['condition']:.2g}",
        "of the residuals lie in Huber's quadratic zone",
        "12 runs from 1e+21 FLOPs on are predicted by the law fitted below",
        f"with a mean error of {held['error']:.3%}",
        f"{chosen['law']} +0.0",
        "AICc ranks and does not test",
        "3 objectives x 5 subsets x 1 definitions of N",
        "on this very grid, without noise, a is off by",
        "to serve 1e+11 tokens at the loss of 1e+22 FLOPs",
        "centre 1e+22 FLOPs on N",
    ):
        assert sentence in text


def test_a_kept_analysis_tells_the_same(analysis: Analysis) -> None:
    assert describe(from_json(to_json(analysis))) == describe(analysis)


def test_without_an_identified_law_nothing_is_proposed() -> None:
    one_budget = grid(budgets=(1e19,), sizes=12, noise=0.003)
    fitted = fit(one_budget, LawSettings(resamples=0))
    with pytest.raises(FitError, match="no law is identified"):
        next_runs(one_budget, (fitted,), SETTINGS, lambda N, D: 6 * N * D)
