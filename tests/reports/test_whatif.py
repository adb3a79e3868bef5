"""The what-if panel's data: one form for every law, a cost curve that is the library's, a known rounding."""

from base64 import b64decode

import numpy as np
import polars as pl
import pytest

from reports.view import make_view
from reports.whatif import COLUMNS, standard_form, token_cost, what_if
from sweeps.laws import LAWS, Analysis, FitError, LawSettings, analyse
from sweeps.laws.flop_curves import flops_of_runs, per_token_curve
from sweeps.laws.inputs import prepare
from sweeps.laws.optima import optima
from sweeps.laws.predictions import law_and_params
from tests.browser import sweep

PARAMETERS = {
    "chinchilla": [38.0, 95.0, 0.7, 0.42, 0.345],
    "tied": [38.0, 60.0, 0.7, 0.38],
    "no-E": [12.0, 14.0, 0.2, 0.18],
    "gamma": [900.0, 4000.0, 0.7, 0.7, 0.6, 0.6],
    "kaplan": [30.0, 9e4, 0.6, 0.5, 0.7],
    "over-training": [40.0, 80.0, 0.7, -0.37],
}


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return sweep.run_table().filter(pl.col("context_length") == 512)


@pytest.fixture(scope="module")
def fitted(table: pl.DataFrame) -> Analysis:
    return analyse(table, LawSettings(resamples=100))


def test_the_form_covers_every_law_of_sizes_and_tokens():
    assert PARAMETERS.keys() == {name for name, law in LAWS.items() if set(law.inputs) == {"N", "D"}}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_form_is_the_law(name: str):
    rows = np.array([PARAMETERS[name]]) * np.linspace(0.9, 1.1, 5)[:, None]
    N, D = np.geomspace(1e4, 1e9, 7), np.geomspace(1e11, 1e6, 7)
    lnA, alpha, lnB, beta, E, gamma = (column[:, None] for column in standard_form(name, rows).T)
    value = E + (np.exp(lnA - alpha * np.log(N)) + np.exp(lnB - beta * np.log(D))) ** gamma
    np.testing.assert_allclose(value, LAWS[name].predict(rows, N=N, D=D), rtol=1e-12)


def test_another_law_is_refused():
    with pytest.raises(FitError, match="'optimal-loss' is no sum of a power of N and a power of D"):
        standard_form("optimal-loss", np.ones((1, 3)))


def cost_at(curve: dict, N: np.ndarray) -> np.ndarray:
    """As the page computes it."""
    at = np.log(N) - curve["center"]
    inside = np.clip(at, curve["low"], curve["high"])
    c0, c1, c2 = curve["coefficients"]
    value = c0 + inside * (c1 + inside * c2)
    slope = np.where(at < curve["low"], curve["slopes"][0], curve["slopes"][1])
    return np.exp(value + slope * (at - inside))


@pytest.mark.parametrize("sizes", [[1e5], [1e5, 4e5], [2e4, 5e4, 1e5, 1e6]])
def test_the_cost_of_a_token_is_the_librarys(sizes: list[float]):
    N = np.array(sizes)
    curve = per_token_curve(N, 6 * N * (1 + 300 / np.sqrt(N)))
    far = np.geomspace(1e2, 1e10, 60)
    np.testing.assert_allclose(cost_at(token_cost(curve, N), far), curve(far), rtol=1e-9)


def test_rounding_to_32_bits_moves_no_optimum_by_more_than_said(table: pl.DataFrame, fitted: Analysis):
    view = make_view(table, fitted, sweep.provenance())
    panel = what_if(view)
    for found, group in zip(panel["groups"], view.groups, strict=True):
        fit = group.parametric[0]
        exact = standard_form(fit.law, fit.draws)
        rounded = np.stack(
            [
                np.full(found["draws"]["count"], column)
                if isinstance(column, float)
                else np.frombuffer(b64decode(column), dtype="<f4").astype(float)
                for column in found["draws"]["columns"]
            ],
            axis=1,
        )
        assert rounded.shape == (100, len(COLUMNS))
        np.testing.assert_allclose(rounded, exact, rtol=6e-8)
        law, _ = law_and_params(fit)
        points = prepare(table.filter(pl.col("arch") == group.arch))
        lnA, alpha, lnB, beta, E, _ = rounded.T
        public = np.stack([np.exp(lnA), np.exp(lnB), E, alpha, beta], axis=1)
        budgets = [1e12, 1e18, 1e24]
        one, other = (optima(law, rows, budgets, flops=flops_of_runs(points)) for rows in (fit.draws, public))
        for name in ("N", "D", "loss"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-5)


def test_no_panel_without_a_law(table: pl.DataFrame):
    few = table.head(2)
    assert what_if(make_view(few, analyse(few, LawSettings(resamples=5)), sweep.provenance())) is None


def test_what_the_device_delivered_is_a_median(table: pl.DataFrame, fitted: Analysis):
    panel = what_if(make_view(table, fitted, sweep.provenance()))
    rates = (table["train_flops"] / table["wall_time_s"]).median()
    assert panel["measured"] == {"device": "cpu", "flopsPerSecond": pytest.approx(rates)}
