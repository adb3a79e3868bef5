"""Diagnostics against what they claim: refits by hand, other estimators, other routes to the same number."""

import numpy as np
import pytest

from sweeps.laws import (
    LAWS,
    FitError,
    Fitted,
    LawSettings,
    compare_laws,
    fit,
    fit_arrays,
    hold_out,
    hold_out_top,
    minimum,
    points_from_arrays,
    prepare,
    profile_likelihood,
    with_interval,
)
from sweeps.laws.diagnostics import leverage
from sweeps.laws.objective import Evaluation, evaluate
from sweeps.laws.solver import Limits, minimise
from tests.sweeps.laws.surfaces import TRUTH, grid, response

LAW = LAWS["chinchilla"]


def sample(noise: float = 0.01, seed: int = 0) -> dict[str, np.ndarray]:
    inputs = grid()
    y = response("chinchilla", TRUTH["chinchilla"], inputs, ("N", "D"))
    return inputs | {"loss": y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y)))}


def solved(data: dict[str, np.ndarray], name: str = "ls-log") -> Fitted:
    return minimum(LAW, data, data["loss"], np.ones(len(data["loss"])), name=name, delta=3e-3)


def exponent(fitted: Fitted) -> float:
    return float(LAW.quantities(fitted.params[None])["a"][0])


@pytest.mark.parametrize("name", ["ls-log", "ls", "vp", "huber-log"])
def test_leave_one_out_equals_a_fit_without_the_row(name: str) -> None:
    data = sample()
    data["loss"][20] *= 1.1
    whole = solved(data, name)
    held = leverage(whole.problem, whole.how, whole.solution.theta, whole.weights)
    assert held is not None
    assert list(held.rows) == list(range(56))
    for row in (0, 20, 41):
        without = {key: np.delete(column, row) for key, column in data.items()}
        assert held.shifts[row] == pytest.approx(exponent(solved(without, name)) - exponent(whole), abs=2e-6)
    lowest = np.argsort(data["loss"])[: held.group_size]
    without = {key: np.delete(column, lowest) for key, column in data.items()}
    assert held.lowest_shift == pytest.approx(exponent(solved(without, name)) - exponent(whole), abs=2e-6)


def test_one_outlier_is_named() -> None:
    data = sample(0.002)
    data["loss"][6] *= 1.4
    fitted = fit_arrays(LAW, data, data["loss"], LawSettings(estimator="ls-log", resamples=200))
    leverage_flags = [flag.message for flag in fitted.flags if flag.code == "leverage"]
    assert any(message.startswith("without row 6 (N ") for message in leverage_flags)
    assert fitted.diagnostics["residual_largest_row"] == 6
    quiet = fit_arrays(LAW, sample(0.002), sample(0.002)["loss"], LawSettings(resamples=200))
    assert not [flag for flag in quiet.flags if flag.code == "leverage"]


def test_scaled_gradient_is_a_cosine() -> None:
    """1 where the residuals are a column of J, below 1 anywhere, 0 at the minimum, blind to scale."""
    data = sample()
    at = solved(data)
    theta = at.solution.theta + 0.2 * np.random.default_rng(0).standard_normal((500, 5))
    values = evaluate(at.problem, theta, at.weights).scaled_gradient
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    np.testing.assert_allclose(
        evaluate(at.problem, theta, 1e9 * at.weights).scaled_gradient, values, rtol=1e-9
    )
    assert evaluate(at.problem, at.solution.theta[None], at.weights).scaled_gradient[0] <= 1e-9


def test_solver_finds_the_minimum_of_a_curved_valley() -> None:
    """Rosenbrock's function as least squares, 50 starts at once."""

    def rosenbrock(theta: np.ndarray, rows: np.ndarray) -> Evaluation:
        x, y = theta.T
        r = np.stack([1 - x, 10 * (y - x**2), np.full(len(x), 1e-3)], axis=1)
        J = np.zeros((len(x), 2, 3))
        J[:, 0, 0], J[:, 0, 1], J[:, 1, 1] = -1, -20 * x, 10
        gradient, curvature = np.einsum("bpn,bn->bp", J, r), np.einsum("bpn,bqn->bpq", J, J)
        return Evaluation.of(0.5 * (r**2).sum(1), gradient, curvature, np.einsum("bii->bi", curvature))

    starts = np.random.default_rng(0).uniform(-3, 3, (50, 2))
    found = minimise(rosenbrock, starts, Limits(tolerance=1e-9))
    np.testing.assert_allclose(found.theta, 1.0, atol=1e-6)
    assert (found.scaled_gradient <= 1e-9).all()


@pytest.mark.parametrize(("noise", "seed"), [(0.01, 0), (0.01, 1), (0.03, 2), (0.05, 3)])
def test_profile_brackets_where_a_constrained_fit_reaches_the_threshold(noise: float, seed: int) -> None:
    """At the interval's ends the deviance of the tied-down fit, found another way, is 3.84."""
    data = sample(noise, seed)
    best = solved(data)
    traced = profile_likelihood(best, "E")
    assert traced.flags == ()
    n = len(data["loss"])
    for end in (traced.interval.low, traced.interval.high):
        assert 0 < end < data["loss"].min()
        theta = best.solution.theta.copy()
        theta[2] = np.log(end)

        def without_e(rows: np.ndarray, _: np.ndarray, e: float = theta[2]) -> Evaluation:
            full = np.insert(rows, 2, e, axis=1)
            at, keep = evaluate(best.problem, full, best.weights), [0, 1, 3, 4]
            return Evaluation.of(
                at.value, at.gradient[:, keep], at.curvature[:, keep][:, :, keep], at.scale[:, keep]
            )

        found = minimise(without_e, np.delete(theta, 2)[None], Limits(tolerance=1e-10))
        assert n * np.log(found.value[0] / best.solution.value) == pytest.approx(3.8415, rel=5e-3)


def test_profile_without_a_lower_end_says_so() -> None:
    """With 10 % noise the law without E fits nearly as well: no E above 0 is low enough to be refuted."""
    data = sample(0.1, 4)
    best = solved(data, "ls")
    bare = minimum(LAWS["no-E"], data, data["loss"], best.weights, name="ls", delta=1e-3)
    assert len(data["loss"]) * np.log(bare.solution.value / best.solution.value) < 3.5
    traced = profile_likelihood(best, "E")
    assert traced.interval.low == -np.inf
    assert best.params[2] < traced.interval.high < 2.3
    assert [flag.code for flag in traced.flags] == ["profile-open"]
    assert "do not bound E from below" in traced.flags[0].message


def test_profile_knows_its_quantities() -> None:
    with pytest.raises(FitError, match="has no quantity 'gamma'; there are A, B, E, alpha, beta, a, b"):
        profile_likelihood(solved(sample()), "gamma")


def test_intervals_of_derived_quantities_come_from_joint_draws() -> None:
    data = sample()
    fitted = fit_arrays(LAW, data, data["loss"], LawSettings(resamples=300))
    a = with_interval(fitted, lambda p: p["beta"] / (p["alpha"] + p["beta"]), 0.95)
    assert (a.value, a.low, a.high) == (
        fitted.derived["a"].value,
        fitted.derived["a"].low,
        fitted.derived["a"].high,
    )
    loss = with_interval(
        fitted, lambda p: p["E"] + p["A"] / 1e9 ** p["alpha"] + p["B"] / 2e10 ** p["beta"], 0.9
    )
    # Errors of A and alpha cancel inside a draw; marginal intervals of A alone span tens of percent.
    assert (loss.high - loss.low) / loss.value < 0.02
    assert (fitted.params["A"].high - fitted.params["A"].low) / fitted.params["A"].value > 0.1
    assert loss.level == 0.9


def test_hold_out_reports_the_box_and_the_trivial_guess() -> None:
    data = sample(0.001)
    points = points_from_arrays(data["N"], data["D"], data["loss"])
    held = hold_out(points, LAW, LawSettings(), cut=1e21)
    train = points.C < 1e21
    assert held.n_test == (~train).sum()
    assert held.outside_N == pytest.approx(np.log(points.N.max() / points.N[train].max()))
    assert held.outside_D == pytest.approx(np.log(points.D.max() / points.D[train].max()))
    expected = np.mean(np.abs(points.loss[train].min() / points.loss[~train] - 1))
    assert held.baseline_error == pytest.approx(expected)
    assert held.error < 0.003 < held.baseline_error
    with pytest.raises(FitError, match="a cut at 1e\\+30 FLOPs leaves 56 runs"):
        hold_out(points, LAW, LawSettings(), cut=1e30)


def test_hold_out_of_the_top_budget_needs_two() -> None:
    points = prepare({"N": [1e8, 2e8], "D": [1e9, 2e9], "loss": [3.0, 2.9], "budget": [1e18, 1e18]})
    with pytest.raises(FitError, match="at least 2 budgets"):
        hold_out_top(points, LAW, LawSettings())


def test_selection_prefers_the_law_behind_the_data() -> None:
    inputs, rng = grid(), np.random.default_rng(5)
    for truth in ("tied", "gamma", "kaplan", "no-E"):
        y = response(truth, TRUTH[truth], inputs, ("N", "D"))
        y = y * np.exp(3e-4 * rng.standard_normal(len(y)))
        scores = compare_laws(
            points_from_arrays(inputs["N"], inputs["D"], y), LawSettings(estimator="ls-log")
        )
        # A nested law may tie with its parent; what the data were made of is never 4 behind.
        behind = {score.law: score.aicc_difference for score in scores}
        assert behind[truth] < 4.0, truth
        assert scores[0].aicc_difference == 0.0


def test_selection_says_what_it_cannot_score() -> None:
    rows = np.arange(0, 56, 8)
    data = {key: column[rows] for key, column in sample().items()}
    scores = {
        s.law: s for s in compare_laws(prepare({k: data[k] for k in ("N", "D", "loss")}), LawSettings())
    }
    assert np.isnan(scores["gamma"].aicc)
    assert "AICc of gamma needs more than 8 points, there are 7" in scores["gamma"].note


def test_diagnostics_are_in_the_result() -> None:
    data = sample()
    fitted = fit({k: data[k] for k in ("N", "D", "loss")}, LawSettings(resamples=50))
    expected = {
        "gradient_norm", "agreeing_starts", "runner_up_excess", "condition", "quadratic_zone_share", "r2",
        "largest_correlation", "resamples_converged", "leverage_shift", "huber_delta", "N_low", "D_high",
    }  # fmt: skip
    assert expected <= set(fitted.diagnostics)
    assert fitted.diagnostics["gradient_norm"] <= 1e-9
    assert fitted.draws is not None
    assert fitted.draws.shape == (50, 5)
    assert fitted.residuals.shape == (56,)
    predicted = LAW.predict({k: v.value for k, v in fitted.params.items()}, N=data["N"], D=data["D"])
    np.testing.assert_allclose(fitted.residuals, np.log(data["loss"] / predicted), atol=1e-10)
