"""Approach 2: published slopes, exact parabolas, intervals that cover, and grids that allow no answer."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.laws import FitError, Points, points_from_arrays
from sweeps.laws.isoflop import fit_isoflop
from sweeps.laws.parabola import parabola_coefficients
from tests.sweeps.laws.conftest import DATA
from tests.sweeps.laws.grids import BUDGETS, HOFFMANN, closed_form_N, grid


def quadratic(
    vertices: dict[float, float],
    *,
    sizes: int = 7,
    curvature: float = 0.05,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Losses that are parabolas in ln N, so that Approach 2 is exactly right."""
    rng = np.random.default_rng(seed)
    rows = []
    for C, vertex in vertices.items():
        N = vertex * np.exp(np.linspace(-1.0, 1.3, sizes))
        loss = 2.0 + C**-0.05 + curvature * np.log(N / vertex) ** 2 + rng.normal(0, noise, sizes)
        rows.append((N, C / 6 / N, loss, np.full(sizes, C)))
    N, D, loss, C = (np.concatenate(column) for column in zip(*rows, strict=True))
    return points_from_arrays(N, D, loss, C=C, budget=C)


def codes(points: Points) -> set[str]:
    return {flag.code for parabola in fit_isoflop(points, resamples=50).parabolas for flag in parabola.flags}


def test_a3_llama_3_slopes(llama3_raw: pl.DataFrame) -> None:
    points = points_from_arrays(
        *(llama3_raw[c].to_numpy() for c in ("N", "D", "loss")), budget=llama3_raw["budget"]
    )
    fit = fit_isoflop(points, resamples=100)
    assert fit.power_laws["N"].exponent.value == pytest.approx(0.463221, abs=1e-5)
    assert fit.power_laws["D"].exponent.value == pytest.approx(0.536779, abs=1e-5)
    assert len(fit.usable) == 10


def paper_runs(context: int, top: float) -> Points:
    path = DATA / "paper" / "tidy" / "all_runs_2k_8k.csv"
    if not path.exists():
        pytest.skip("the paper's runs are not here")
    runs = pl.read_csv(path, infer_schema_length=None).filter(
        (pl.col("experiment_set") == "isoflop")
        & (pl.col("model_type") == "llama")
        & (pl.col("context_length") == context)
    )
    runs = runs.with_columns(budget=pl.col("isoflop_budget_label").cast(pl.Float64))
    runs = runs.filter(pl.col("budget").is_between(5e18, top))
    names = ("num_params", "tokens_trained", "final_val_loss_dclm")
    N, D, loss = (runs[name].to_numpy() for name in names)
    return points_from_arrays(N, D, loss, C=runs["train_flops_distill"], budget=runs["budget"])


@pytest.mark.parametrize(
    ("context", "top", "a", "b"),
    [(2048, 5e19, 0.553549, 0.422606), (8192, 5e19, 0.577327, 0.421860), (8192, 2e20, 0.574909, 0.424271)],
)
def test_a6_paper_slopes(context: int, top: float, a: float, b: float) -> None:
    """Two parabolas, exact FLOPs: a + b is not 1, as it need not be (arXiv:2510.02228)."""
    fit = fit_isoflop(paper_runs(context, top), tokens="parabola", resamples=100)
    assert fit.power_laws["N"].exponent.value == pytest.approx(a, abs=1e-5)
    assert fit.power_laws["D"].exponent.value == pytest.approx(b, abs=1e-5)
    assert fit.method.startswith("pairs")


@given(
    exponent=st.floats(0.3, 0.8),
    curvature=st.floats(0.01, 0.5),
    sizes=st.integers(3, 12),
    unit=st.sampled_from([1.0, 1e-6, 1e3]),
)
def test_recovers_parabolas_exactly(exponent: float, curvature: float, sizes: int, unit: float) -> None:
    C = np.array([1e17, 1e18, 1e20])
    points = quadratic({c: 1e7 * (c / 1e17) ** exponent for c in C}, sizes=sizes, curvature=curvature)
    scaled = points_from_arrays(
        points.N * unit, points.D / unit, points.loss, C=points.C, budget=points.budget
    )
    fit = fit_isoflop(scaled, resamples=0)
    assert fit.power_laws["N"].exponent.value == pytest.approx(exponent, abs=1e-9)
    assert fit.power_laws["D"].exponent.value == pytest.approx(1 - exponent, abs=1e-9)
    for parabola in fit.parabolas:
        assert parabola.N.value == pytest.approx(unit * 1e7 * (parabola.budget / 1e17) ** exponent, rel=1e-8)
        assert parabola.c2 == pytest.approx(curvature, rel=1e-8)
        assert parabola.loss.value == pytest.approx(2.0 + parabola.budget**-0.05, rel=1e-10)


def test_row_order_and_repeated_rows_change_nothing() -> None:
    points = grid(noise=0.003)
    order = np.random.default_rng(1).permutation(len(points))
    first, second = (fit_isoflop(p, resamples=0).power_laws["N"] for p in (points, points.take(order)))
    assert second.exponent.value == pytest.approx(first.exponent.value, abs=1e-12)
    weights = np.where(np.arange(len(points)) % 3 == 0, 2.0, 1.0)
    repeated = points.take(np.repeat(np.arange(len(points)), weights.astype(int)))
    weighted = points_from_arrays(
        points.N, points.D, points.loss, C=points.C, budget=points.budget, weights=weights
    )
    exponents = [fit_isoflop(p, resamples=0).parabolas[0].N.value for p in (repeated, weighted)]
    assert exponents[0] == pytest.approx(exponents[1], rel=1e-10)


def test_weighted_coefficients_agree_with_polyfit() -> None:
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=9), rng.normal(size=9), rng.uniform(0.5, 2, (4, 9))
    found = parabola_coefficients(x, y, w)
    for row, weights in zip(found, w, strict=True):
        assert row == pytest.approx(np.polyfit(x, y, 2, w=np.sqrt(weights))[::-1], rel=1e-9)


@pytest.mark.parametrize("sizes", [5, 7])
def test_student_intervals_cover(sizes: int) -> None:
    """95 % intervals of N* and of a over simulated grids of the sizes that people train."""
    vertices = {1e17: 2e7, 1e18: 6e7, 1e19: 2e8}
    hits_N = hits_a = 0
    truth = np.polyfit(np.log(list(vertices)), np.log(list(vertices.values())), 1)[0]
    rounds = 150
    for seed in range(rounds):
        points = quadratic(vertices, sizes=sizes, noise=0.004, seed=seed)
        fit = fit_isoflop(points, resamples=200, resampling="student", seed=seed)
        N, a = fit.parabolas[1].N, fit.power_laws["N"].exponent
        hits_N += N.low <= 6e7 <= N.high
        hits_a += a.low <= truth <= a.high
    assert 0.91 <= hits_N / rounds <= 0.985
    assert 0.91 <= hits_a / rounds <= 0.985


def test_few_runs_draw_student_and_many_draw_pairs() -> None:
    assert "Student" in fit_isoflop(grid(sizes=7, noise=0.003), resamples=50).method
    assert "pairs" in fit_isoflop(grid(sizes=12, noise=0.003), resamples=50).method


def test_same_seed_same_intervals() -> None:
    points = grid(noise=0.003)
    first, second, other = (fit_isoflop(points, resamples=99, seed=s) for s in (1, 1, 2))
    assert first.power_laws == second.power_laws
    assert first.power_laws["N"].exponent != other.power_laws["N"].exponent


def test_inverted_parabola_is_left_out_and_the_rest_fitted() -> None:
    points = grid(noise=0.0)
    loss = points.loss.copy()
    bad = points.budget == 1e19
    loss[bad] = 2 * loss[bad].mean() - loss[bad]
    spoilt = points_from_arrays(points.N, points.D, loss, C=points.C, budget=points.budget)
    fit = fit_isoflop(spoilt, resamples=50)
    assert [p.usable for p in fit.parabolas] == [True, True, False, True, True]
    assert {flag.code for flag in fit.parabolas[2].flags} == {"inverted-parabola"}
    assert np.isnan(fit.parabolas[2].N.value)
    assert fit.power_laws["N"].n_budgets == 4
    assert any(flag.code == "budget-left-out" and "1e+19" in flag.message for flag in fit.flags)


def test_vertex_outside_the_grid_is_not_used() -> None:
    points = grid(offsets=[0.0, 0.0, 0.0, 0.0, 3.0])
    fit = fit_isoflop(points, resamples=0)
    assert [p.usable for p in fit.parabolas] == [True] * 4 + [False]
    flag = fit.parabolas[-1].flags[0]
    assert flag.code == "vertex-outside-grid"
    assert "larger" in flag.message


def test_one_budget_has_a_vertex_and_no_power_law() -> None:
    fit = fit_isoflop(grid(budgets=[1e19]), resamples=50)
    assert fit.parabolas[0].usable
    assert not fit.power_laws
    assert "no-power-law" in {flag.code for flag in fit.flags}


def test_two_sizes_are_refused() -> None:
    with pytest.raises(FitError, match="3 distinct N"):
        fit_isoflop(grid(sizes=2))


def test_near_equal_sizes_count_once() -> None:
    points = grid(sizes=3)
    N = np.repeat(closed_form_N(np.array(BUDGETS), HOFFMANN), 3) * (1 + 1e-12 * np.tile([0, 1, 2], 5))
    same = points_from_arrays(N, points.D, points.loss, C=points.C, budget=points.budget)
    with pytest.raises(FitError, match="3 distinct N"):
        fit_isoflop(same)


def test_a_budget_with_two_sizes_does_not_stop_the_others() -> None:
    points = grid()
    keep = (points.budget != 1e18) | (np.arange(len(points)) % 7 < 2)
    fit = fit_isoflop(points.take(keep), resamples=50)
    assert {flag.code for flag in fit.parabolas[1].flags} == {"too-few-sizes"}
    assert fit.power_laws["N"].n_budgets == 4


def test_constant_loss_has_no_optimum() -> None:
    points = grid()
    flat = points_from_arrays(points.N, points.D, np.full(len(points), 3.0), C=points.C, budget=points.budget)
    fit = fit_isoflop(flat, resamples=50)
    assert not fit.usable
    assert codes(flat) == {"flat-parabola"}
    assert all(np.isnan(p.N.value) for p in fit.parabolas)


def test_uncertain_curvature_has_no_finite_interval() -> None:
    points = quadratic({1e17: 2e7, 1e18: 6e7, 1e19: 2e8}, sizes=5, curvature=0.002, noise=0.004, seed=4)
    fit = fit_isoflop(points, resamples=500)
    uncertain = [p for p in fit.parabolas if "curvature-uncertain" in {flag.code for flag in p.flags}]
    assert uncertain
    assert all(np.isnan(p.N.low) for p in uncertain)


def test_three_points_a_budget_give_no_interval() -> None:
    fit = fit_isoflop(grid(sizes=3), resamples=100)
    assert np.isnan(fit.parabolas[0].N.low)
    assert np.isnan(fit.power_laws["N"].exponent.low)
    assert "passes through its points" in fit.method


def test_read_only_columns_are_welcome() -> None:
    points = grid(noise=0.003)
    assert not points.N.flags.writeable
    fit_isoflop(points, resamples=50)


def test_crooked_vertices_are_flagged() -> None:
    straight = quadratic({1e17: 2e7, 1e18: 6e7, 1e19: 1.8e8, 1e20: 5.4e8}, noise=0.002)
    bent = quadratic({1e17: 2e7, 1e18: 6e7, 1e19: 3.5e8, 1e20: 5.4e8}, noise=0.002)
    for points, expected in ((straight, False), (bent, True)):
        law = fit_isoflop(points, resamples=200).power_laws["N"]
        assert ("power-law-misfit" in {flag.code for flag in law.flags}) is expected
