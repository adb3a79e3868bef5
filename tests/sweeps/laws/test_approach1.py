"""Approach 1: frontiers by brute force, and exponents on dense noise-free runs."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.laws import FitError, points_from_arrays
from sweeps.laws.approach1 import envelope, fit_approach1, lower_hull
from tests.sweeps.laws.conftest import DATA
from tests.sweeps.laws.grids import HOFFMANN, chinchilla_loss, grid

positive = st.floats(0.1, 10.0)


@given(st.lists(st.tuples(st.floats(1e15, 1e22), positive), min_size=1, max_size=30))
def test_no_point_lies_below_the_hull(pairs: list[tuple[float, float]]) -> None:
    C, loss = np.array(pairs).T
    rows = lower_hull(C, loss)
    x, y = np.log(C), np.log(loss)
    assert y[rows[-1]] == y.min()
    assert (np.diff(x[rows]) >= 0).all()
    if len(rows) > 1 and (np.diff(x[rows]) > 0).all():
        inside = x <= x[rows[-1]]
        assert (y[inside] >= np.interp(x[inside], x[rows], y[rows]) - 1e-9).all()


@given(st.lists(st.tuples(st.floats(1e15, 1e22), positive), min_size=1, max_size=30), st.integers(1, 20))
def test_the_envelope_holds_the_lowest_of_each_bin(pairs: list[tuple[float, float]], bins: int) -> None:
    C, loss = np.array(pairs).T
    rows = envelope(C, loss, bins)
    places = np.floor(np.log10(C) * bins + 1e-9)
    assert sorted(places[rows]) == sorted(set(places))
    for row in rows:
        assert loss[row] == loss[places == places[row]].min()


@pytest.mark.parametrize("frontier", ["envelope", "hull"])
def test_dense_curves_give_the_exponent(frontier: str) -> None:
    N = np.geomspace(1e7, 1e10, 60)
    D = np.geomspace(1e8, 1e12, 300)
    n, d = (axis.ravel() for axis in np.meshgrid(N, D))
    runs = np.repeat("", len(n)).astype(object)
    runs[:] = [f"{size:.6g}" for size in n]
    points = points_from_arrays(n, d, chinchilla_loss(n, d, HOFFMANN), run_key=runs.astype(str))
    inner = points.take((points.C > 1e18) & (points.C < 1e21))
    found = fit_approach1(inner, frontier=frontier, resamples=20)
    assert found.power_laws["N"].exponent.value == pytest.approx(0.28 / 0.62, abs=0.02)
    total = found.power_laws["N"].exponent.value + found.power_laws["D"].exponent.value
    assert total == pytest.approx(1.0, abs=1e-9)


def test_published_token_ratio_runs() -> None:
    """The paper's figure has .473 for N, by the hull of training curves; final runs come near."""
    path = DATA / "paper" / "tidy" / "runs_tokenparam_llama.csv"
    if not path.exists():
        pytest.skip("the paper's runs are not here")
    runs = pl.read_csv(path, infer_schema_length=None)
    N, D, loss = (runs[c].to_numpy() for c in ("num_params", "tokens_trained", "final_val_loss_dclm"))
    points = points_from_arrays(N, D, loss, C=runs["train_flops_distill"])
    found = fit_approach1(points, frontier="hull", resamples=100)
    assert found.power_laws["N"].exponent.value == pytest.approx(0.473, abs=0.1)


def test_a_frontier_of_one_point_is_an_error() -> None:
    with pytest.raises(FitError, match="a power law needs 2"):
        fit_approach1(grid(budgets=(1e19,)), bins_per_decade=1)
    with pytest.raises(FitError, match="frontier 'best'"):
        fit_approach1(grid(), frontier="best")
