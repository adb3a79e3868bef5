"""What a plan promises against what simulated sweeps deliver."""

import numpy as np
import polars as pl
import pytest

from sweeps.laws import LAWS, FitError, LawSettings, fit_points, points_from_arrays, six_nd
from sweeps.laws.design import Design, Surface, propose_runs, recentre, target_slope
from sweeps.laws.isoflop import fit_isoflop
from sweeps.laws.optima import optima
from sweeps.laws.planning import describe_plan_quality, surface_through, vertex_error
from sweeps.laws.text import describe_plan
from tests.sweeps.laws.grids import HOFFMANN, closed_form_N, grid, run_table

LAW = LAWS["chinchilla"]
PARAMS = np.array([HOFFMANN[name] for name in LAW.params])
NOISE = 0.004
SURFACE = Surface(law=LAW, params=PARAMS, noise=NOISE)
TARGET = 1e22
Z = 1.959964


def plan() -> pl.DataFrame:
    return run_table(grid()).drop("loss", "run_key", "status")


def test_predicted_intervals_agree_with_simulated_sweeps() -> None:
    quality = describe_plan_quality(plan(), surface=SURFACE, target=TARGET).groups[0]
    exponents, targets, first = [], [], []
    for seed in range(200):
        found = fit_isoflop(grid(noise=NOISE, seed=seed), resamples=0)
        exponents.append(found.power_laws["N"].exponent.value)
        targets.append(np.log(found.power_laws["N"](TARGET)))
        first.append(np.log(found.parabolas[0].N.value))
    assert Z * np.std(exponents) == pytest.approx(quality.exponent_half_width, rel=0.15)
    assert Z * np.std(targets) == pytest.approx(np.log(quality.N_target_factor), rel=0.15)
    assert np.std(first) == pytest.approx(quality.budgets[0].log_N_error, rel=0.15)
    truth = np.log(closed_form_N(np.array(1e17), HOFFMANN))
    assert np.mean(first) - truth == pytest.approx(quality.budgets[0].bias, abs=0.004)


def test_the_laws_interval_agrees_with_simulated_fits() -> None:
    quality = describe_plan_quality(plan(), surface=SURFACE, target=TARGET).groups[0]
    targets = []
    for seed in range(60):
        fitted = fit_points(grid(noise=NOISE, seed=seed), LAW, LawSettings(estimator="ls-log"))
        targets.append(np.log(optima(LAW, fitted.params, [TARGET]).N[0, 0]))
    assert Z * np.std(targets) == pytest.approx(np.log(quality.N_target_factor_law), rel=0.3)


def test_the_surface_through_a_grid_has_its_optimum_in_the_middle() -> None:
    points = grid()
    surface = surface_through(points, six_nd)
    middle = np.exp(np.log(points.N).mean())
    C = np.exp(np.log(points.budget).mean())
    assert optima(LAW, surface.params, [C]).N[0, 0] == pytest.approx(middle, rel=1e-6)


def test_more_noise_wider_and_more_sizes_narrower() -> None:
    def half_width(noise: float = 0.004, sizes: int = 7) -> float:
        table = run_table(grid(sizes=sizes)).drop("loss")
        return describe_plan_quality(table, noise=noise).groups[0].exponent_half_width

    assert half_width(noise=0.008) == pytest.approx(2 * half_width(), rel=1e-9)
    assert half_width(sizes=14) < half_width() < half_width(sizes=5)


def test_a_drifting_grid_is_told_its_bias() -> None:
    drifting = grid(offsets=tuple(np.linspace(0, 1.1, 5)), half_width=8.0)
    found = describe_plan_quality(run_table(drifting).drop("loss"), surface=SURFACE).groups[0]
    measured = fit_isoflop(drifting, resamples=0).power_laws["N"].exponent.value - 0.28 / 0.62
    assert found.exponent_bias == pytest.approx(measured, abs=1e-7)
    assert abs(found.exponent_bias) > 0.004


def test_poor_plans_are_flagged() -> None:
    narrow = run_table(grid(budgets=(1e19,), sizes=3, half_width=1.2, offsets=3.0)).drop("loss")
    quality = describe_plan_quality(narrow, surface=SURFACE)
    assert {flag.code for flag in quality.flags} >= {"few-budgets", "few-points", "vertex-outside-grid"}
    row = quality.table[0]
    assert np.isnan(row["a_half_width"])
    assert row["a_half_width_law"] == float("inf")


def test_bad_plans_are_errors() -> None:
    with pytest.raises(FitError, match="column\\(s\\) budget"):
        describe_plan_quality(plan().drop("budget"))
    with pytest.raises(FitError, match="no runs"):
        describe_plan_quality(plan().head(0))


def test_proposals_are_the_best_single_runs() -> None:
    """A proposal's promise is the error of a design that holds it; no candidate of its cost beats it."""
    points = grid(sizes=5)
    picks = propose_runs(points, SURFACE, TARGET, count=3, budgets=(1e18, 1e20))
    N, D = points.N, points.D
    for pick in picks:
        before = Design.of(N, D, SURFACE)
        assert pick.error_before == pytest.approx(before.error(target_slope(before, TARGET)), rel=1e-4)
        gains = []
        assert points.N.min() <= pick.N * (1 + 1e-6)
        assert points.N.max() * (1 + 1e-6) >= pick.N
        for size in np.geomspace(0.125, 8, 9) * closed_form_N(np.array(pick.budget), HOFFMANN):
            after = Design.of(np.append(N, size), np.append(D, pick.budget / 6 / size), SURFACE)
            gains.append(after.error(target_slope(after, TARGET)))
        assert pick.error_after == pytest.approx(min(gains), rel=1e-4)
        N, D = np.append(N, pick.N), np.append(D, pick.D)
    errors = [pick.error_before for pick in picks] + [picks[-1].error_after]
    assert errors == sorted(errors, reverse=True)


def test_proposals_need_an_identified_law() -> None:
    with pytest.raises(FitError, match="train a grid"):
        propose_runs(grid(budgets=(1e19,)), SURFACE, TARGET)


def test_vertex_error_needs_three_sizes() -> None:
    assert np.isnan(vertex_error(grid(sizes=2, budgets=(1e19,)), SURFACE))


def test_later_budgets_are_centred_on_earlier_vertices() -> None:
    assert recentre({1e18: 1e8}, [1e20]) == pytest.approx([1e9])
    assert recentre({1e18: 1e8, 1e19: 3e8}, [1e20]) == pytest.approx([9e8])
    flat = recentre({1e18: 1e8, 1e19: 1e8}, [1e20])
    assert flat == pytest.approx([1e8 * 10 ** (1.5 * 0.3)])
    with pytest.raises(FitError, match="no earlier vertex"):
        recentre({}, [1e20])


def test_a_plan_says_which_runs_it_lacks() -> None:
    """The promise of the proposals is what a design with them has, over one without."""
    quality = describe_plan_quality(plan(), surface=SURFACE, target=TARGET)
    group = quality.groups[0]
    assert [run.error_before for run in group.proposals[1:]] == pytest.approx(
        [run.error_after for run in group.proposals[:-1]]
    )
    N, D = (np.append(getattr(grid(), k), [getattr(r, k) for r in group.proposals]) for k in "ND")
    after = Design.of(N, D, SURFACE)
    last = group.proposals[-1].error_after
    assert last == pytest.approx(after.error(target_slope(after, TARGET)), rel=1e-4)
    assert "most for their FLOPs beside the plan" in describe_plan(quality)


def test_finished_budgets_centre_the_later_ones() -> None:
    """Sizes that were centred on a guess three times too small are told so by the first two parabolas."""
    planned = grid(half_width=8.0, offsets=np.log(3.0))
    done = run_table(planned).filter(pl.col("budget") < 1e19)
    quality = describe_plan_quality(run_table(planned).drop("loss"), finished=done)
    centres = {centre.budget: centre for centre in quality.groups[0].centres}
    assert set(centres) == {1e19, 1e20, 1e21}
    for budget, centre in centres.items():
        truth = float(closed_form_N(np.array(budget), HOFFMANN))
        assert centre.N_planned == pytest.approx(truth / 3, rel=1e-9)
        assert centre.N_expected == pytest.approx(truth, rel=0.25)
    assert [flag.code for flag in quality.flags].count("off-centre") == 3
    assert "the finished budgets put N* at 1e+19 FLOPs near" in describe_plan(quality)
    assert not describe_plan_quality(run_table(planned).drop("loss")).groups[0].centres


def test_a_surface_tells_the_noise_free_losses() -> None:
    points = grid()
    assert SURFACE.loss(points.N, points.D) == pytest.approx(points.loss, rel=1e-12)
    again = points_from_arrays(points.N, points.D, SURFACE.loss(points.N, points.D), budget=points.budget)
    assert fit_isoflop(again, resamples=0).power_laws["N"].exponent.value == pytest.approx(
        0.28 / 0.62, abs=1e-9
    )
