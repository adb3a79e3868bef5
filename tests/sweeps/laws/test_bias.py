"""What parabolas get wrong without noise: A4, and the closed form against dense grids."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.laws import LAWS
from sweeps.laws.bias import predicted_bias, uniform_grid_bias
from sweeps.laws.isoflop import fit_isoflop
from tests.sweeps.laws.grids import HOFFMANN, grid

SURFACES = {
    "symmetric": {"A": 400.0, "B": 400.0, "E": 1.69, "alpha": 0.31, "beta": 0.31},
    "chinchilla": HOFFMANN,
    "asymmetric": {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.465, "beta": 0.155},
}
OFFSETS = {"centered": 0.0, "offset3x_D": np.log(3), "drift3x_D": tuple(np.linspace(0, np.log(3), 5))}


def test_a4_all_36_rows(published: Callable[[str], pl.DataFrame]) -> None:
    rows = published("synthetic_approach2_bias.csv")
    assert rows.height == 36
    for row in rows.iter_rows(named=True):
        surface = SURFACES[row["surface"]]
        points = grid(surface, half_width=row["k"], sizes=15, offsets=OFFSETS[row["mode"]])
        fit = fit_isoflop(points, resamples=0, outside="use")
        law = fit.power_laws["D"]
        assert law.exponent.value == pytest.approx(row["a2_b"], abs=1e-9)
        error = 100 * (float(law(1e24)) / row["Dstar_1e24_true"] - 1)
        assert error == pytest.approx(row["rel_err_pct"], abs=0.01)
        params = np.array([surface[name] for name in LAWS["chinchilla"].params])
        bias = predicted_bias(LAWS["chinchilla"], params, points, target=1e24)
        assert 100 * bias.relative_D == pytest.approx(row["rel_err_pct"], abs=0.01)
        assert bias.exponent_D == pytest.approx(row["a2_b"] - row["true_b"], abs=1e-8)
        assert bias.log_N == pytest.approx(
            np.log([p.N.value for p in fit.parabolas])
            - np.log([(p.budget / 6) ** row["true_a"] for p in fit.parabolas])
            - np.log(_scale(surface)),
            abs=1e-8,
        )


def _scale(s: dict[str, float]) -> float:
    return (s["alpha"] * s["A"] / (s["beta"] * s["B"])) ** (1 / (s["alpha"] + s["beta"]))


@given(
    alpha=st.floats(0.1, 0.8),
    beta=st.floats(0.1, 0.8),
    half_width=st.floats(0.3, 2.5),
    middle=st.floats(-1.0, 1.0),
)
def test_closed_form_is_the_limit_of_dense_grids(
    alpha: float, beta: float, half_width: float, middle: float
) -> None:
    u = middle + half_width * (np.arange(4000) + 0.5 - 2000) / 2000
    loss = np.exp(-alpha * u) / alpha + np.exp(beta * u) / beta
    c2, c1, _ = np.polyfit(u - middle, loss, 2)
    vertex = middle - c1 / (2 * c2)
    assert uniform_grid_bias(alpha, beta, half_width, middle) == pytest.approx(vertex, abs=2e-5)


def test_leading_order_of_a_centred_grid() -> None:
    H = 0.05
    assert uniform_grid_bias(0.5, 0.2, H) == pytest.approx((0.5 - 0.2) * H**2 / 10, rel=1e-2)
    assert uniform_grid_bias(0.3, 0.3, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_budgets_that_are_not_used_do_not_count() -> None:
    points = grid(offsets=(0.0, 0.0, 0.0, 0.0, 1.0))
    params = np.array([HOFFMANN[name] for name in LAWS["chinchilla"].params])
    whole = predicted_bias(LAWS["chinchilla"], params, points)
    part = predicted_bias(LAWS["chinchilla"], params, points, budgets=points.budgets[:4])
    assert abs(part.exponent_N) < 1e-8 < abs(whole.exponent_N)
