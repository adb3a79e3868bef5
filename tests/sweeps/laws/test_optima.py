"""Optima on any FLOP function, against closed forms and scipy's one-dimensional minimiser."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from sweeps.laws import LAWS, FitError, six_nd
from sweeps.laws.flop_curves import curve_error, flops_of_runs
from sweeps.laws.inference_cost import decode_cost, serving_optimum, tokens_for_loss, two_n_per_token
from sweeps.laws.optima import compute_for_loss, optima, paired_loss, tokens_at
from tests.sweeps.laws.grids import HOFFMANN, closed_form_N, grid
from tests.sweeps.laws.surfaces import TRUTH

CHINCHILLA = LAWS["chinchilla"]
PARAMS = np.array([HOFFMANN[name] for name in CHINCHILLA.params])


def attention(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """FLOPs with an attention term: a token costs 6 N + k N^(2/3)."""
    return (6.0 * N + 4000.0 * N ** (2 / 3)) * D


@given(
    alpha=st.floats(0.15, 0.9),
    beta=st.floats(0.15, 0.9),
    A=st.floats(50.0, 5e3),
    B=st.floats(50.0, 5e3),
    C=st.floats(1e16, 1e25),
)
def test_closed_form_under_6nd(alpha: float, beta: float, A: float, B: float, C: float) -> None:
    surface = {"A": A, "B": B, "E": 1.5, "alpha": alpha, "beta": beta}
    expected = float(closed_form_N(np.array(C), surface))
    found = optima(CHINCHILLA, np.array([A, B, 1.5, alpha, beta]), [C])
    if 100.0 < expected < C / 6 / 100.0:
        assert found.N[0, 0] == pytest.approx(expected, rel=1e-7)
        assert found.D[0, 0] == pytest.approx(C / 6 / expected, rel=1e-7)


@pytest.mark.parametrize("name", ["chinchilla", "tied", "gamma", "kaplan", "no-E"])
def test_agrees_with_scipy_where_6nd_fails(name: str) -> None:
    law = LAWS[name]
    params = np.array(list(TRUTH[name].values()))
    budgets = [1e18, 1e20, 3e22]
    found = optima(law, params, budgets, flops=attention)
    for i, C in enumerate(budgets):

        def loss(log_N: float, C: float = C) -> float:
            N = np.exp(log_N)
            return float(law.predict(params, N=N, D=C / (6 * N + 4000 * N ** (2 / 3)))[0])

        best = minimize_scalar(
            loss, bounds=(np.log(1e4), np.log(1e13)), method="bounded", options={"xatol": 1e-10}
        )
        assert found.loss[0, i] == pytest.approx(best.fun, rel=1e-12)
        assert np.log(found.N[0, i]) == pytest.approx(best.x, abs=1e-5)
        assert float(attention(found.N[0, i], found.D[0, i])) == pytest.approx(C, rel=1e-10)


def test_exponents_need_not_add_up_to_one() -> None:
    found = optima(CHINCHILLA, PARAMS, [1e18, 1e20], flops=attention)
    a, b = (np.log(x[0, 1] / x[0, 0]) / np.log(100) for x in (found.N, found.D))
    assert abs(a + b - 1) > 0.005


def test_rows_and_budgets_are_independent() -> None:
    draws = PARAMS * np.exp(np.random.default_rng(0).normal(0, 0.02, (50, 5)))
    together = optima(CHINCHILLA, draws, [1e18, 1e21], flops=attention)
    alone = optima(CHINCHILLA, draws[17], [1e21], flops=attention)
    assert together.N[17, 1] == pytest.approx(alone.N[0, 0], rel=1e-9)


def test_a_row_without_an_optimum_is_nan_and_harms_no_other() -> None:
    rising = PARAMS * np.array([1, 1, 1, -1, 1])
    lost = np.full(5, np.nan)
    found = optima(CHINCHILLA, np.stack([rising, PARAMS, lost]), [1e20])
    assert np.isnan(found.N[[0, 2], 0]).all()
    assert np.isnan(found.loss[[0, 2], 0]).all()
    assert found.N[1, 0] == pytest.approx(float(closed_form_N(np.array(1e20), HOFFMANN)), rel=1e-8)


def test_a_law_of_compute_has_no_optimum() -> None:
    with pytest.raises(FitError, match="N and D"):
        optima(LAWS["optimal-loss"], np.array([1.0, 1.0, 1.0]), [1e20])


@given(N=st.floats(1e5, 1e11), C=st.floats(1e16, 1e24), power=st.floats(0.6, 1.4))
def test_tokens_spend_the_budget(N: float, C: float, power: float) -> None:
    def flops(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return 5.0 * n * d**power + 100.0 * n**0.5 * d

    D = tokens_at(flops, np.array([N]), C)
    assert flops(np.array([N]), D)[0] == pytest.approx(C, rel=1e-9)


def test_flops_that_do_not_rise_with_tokens_are_an_error() -> None:
    with pytest.raises(FitError, match="must rise with D"):
        tokens_at(lambda N, D: 6 * N + 0 * D, np.array([1e8]), 1e20)


@pytest.mark.parametrize("flops", [six_nd, attention])
def test_compute_for_loss_inverts_the_optimum(flops) -> None:  # type: ignore[no-untyped-def]
    draws = PARAMS * np.exp(np.random.default_rng(1).normal(0, 0.01, (20, 5)))
    best = optima(CHINCHILLA, draws, [3e21], flops=flops)
    found = compute_for_loss(CHINCHILLA, draws, best.loss[:, 0], 1e20, flops=flops)
    assert found == pytest.approx(np.full(20, 3e21), rel=1e-6)


def test_a_loss_below_the_irreducible_has_no_compute() -> None:
    assert np.isnan(compute_for_loss(CHINCHILLA, PARAMS, np.array([1.6]), 1e20)[0])


def test_flops_of_runs_is_6nd_where_the_runs_say_so() -> None:
    points = grid()
    flops = flops_of_runs(points)
    assert curve_error(points, flops) < 1e-12
    assert flops(np.array(1e12), np.array(1e13)) == pytest.approx(6e25, rel=1e-9)


def test_a7_sardana() -> None:
    """13B Chinchilla-optimal, 2e12 tokens served: arXiv:2401.00448, section 3."""
    params = np.array([406.4, 410.7, 1.69, 0.336, 0.283])
    C = 6 * 13e9 * 5.764855e11
    best = optima(CHINCHILLA, params, [C])
    assert best.N[0, 0] == pytest.approx(13e9, rel=1e-4)
    found = serving_optimum(CHINCHILLA, params, C, two_n_per_token(2e12))
    assert found.N[0] == pytest.approx(6.969e9, rel=1e-3)
    assert found.D[0] == pytest.approx(1.248e12, rel=1e-3)
    assert found.total_flops[0] == pytest.approx(8.005e22, rel=1e-3)
    assert 100 * found.saving[0] == pytest.approx(17.4, abs=0.05)


def test_serving_meets_the_first_order_condition() -> None:
    """alpha A N^-alpha / (beta B D^-beta) = 1 + D_inf / (3 D) for 6 N D and 2 N a token."""
    A, B, _, alpha, beta = PARAMS
    found = serving_optimum(CHINCHILLA, PARAMS, 1e22, two_n_per_token(5e11))
    N, D = found.N[0], found.D[0]
    assert alpha * A * N**-alpha / (beta * B * D**-beta) == pytest.approx(1 + 5e11 / (3 * D), rel=1e-6)


def test_dearer_tokens_make_the_served_model_smaller() -> None:
    cheap = serving_optimum(CHINCHILLA, PARAMS, 1e22, decode_cost(lambda N: 2 * N, 1e12))
    dear = serving_optimum(CHINCHILLA, PARAMS, 1e22, decode_cost(lambda N: 2 * N + 50 * N**0.8, 1e12))
    none = serving_optimum(CHINCHILLA, PARAMS, 1e22, lambda N: 0.0 * N)
    assert dear.N[0] < cheap.N[0] < none.N[0]
    assert none.N[0] == pytest.approx(optima(CHINCHILLA, PARAMS, [1e22]).N[0, 0], rel=1e-5)
    assert none.saving[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["chinchilla", "gamma", "kaplan"])
def test_tokens_for_loss_inverts_the_law(name: str) -> None:
    law, params = LAWS[name], np.array(list(TRUTH[name].values()))
    N, D = np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)
    rows = np.repeat(params[None], 6, axis=0)
    found = tokens_for_loss(law, rows, N, paired_loss(law, rows, N, D))
    assert found == pytest.approx(D, rel=1e-6)
    assert np.isnan(tokens_for_loss(law, rows[:1], N[:1], np.array([0.1]))).all()
