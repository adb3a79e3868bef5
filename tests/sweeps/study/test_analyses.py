"""The analyses on data whose truth is known, and on the paper's."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sweeps.published import PublishedStudy
from sweeps.study import Study
from sweeps.study.batch import batch_effects
from sweeps.study.data import duplicates, study_runs
from sweeps.study.frontier import linear_hull, pareto
from sweeps.study.isoflop import curves_of, line_in_logs
from sweeps.study.overtraining import fit_lines, parallel_test


def test_line_in_logs_is_the_textbook_line():
    rng = np.random.default_rng(1)
    C = np.geomspace(1e18, 1e21, 6)
    y = 3.0 * C**0.5 * np.exp(0.05 * rng.standard_normal(6))
    found, known = line_in_logs(C, y), stats.linregress(np.log(C), np.log(y))
    assert found.exponent == pytest.approx(known.slope, rel=1e-10)
    assert found.exponent_std == pytest.approx(known.stderr, rel=1e-8)
    assert found.A_std == pytest.approx(found.A * known.intercept_stderr, rel=1e-8)
    assert found(found.inverse(1e9)) == pytest.approx(1e9)


def test_tied_tokens_spend_the_budget(paper_study: Study):
    """Ours: N* and D* cost what the runs of the budget cost. Theirs: up to 4.5 % more."""
    off = []
    for curves in paper_study.curves:
        for p in curves.ours.parabolas:
            spent = curves.flops(np.array([p.N.value]), np.array([p.D.value]))[0]
            assert spent == pytest.approx(p.train_flops, rel=1e-9)
            off.append(abs(curves.contradiction(p.budget) - 1))
    assert max(off) == pytest.approx(0.0448, abs=2e-4)


def test_tied_tokens_lie_among_the_runs(paper_study: Study):
    """D* against the runs themselves: ln D of a budget's runs as a curve in ln N, read at N*."""
    for curves in paper_study.curves:
        for p in curves.ours.parabolas:
            group = curves.points.take(curves.points.budget == p.budget)
            x = np.log(group.N / p.N.value)
            at = np.polynomial.polynomial.polyfit(x, np.log(group.D), 2)[0]
            assert p.D.value == pytest.approx(np.exp(at), rel=0.02)


def test_conclusions_of_the_optima(paper_study: Study):
    assert len(paper_study.gaps) == 7
    assert all(gap.N_ratio.low > 1 and gap.loss_gap.high < 0 for gap in paper_study.gaps)
    assert all(trend.N_ratio_exponent.low > 0 for trend in paper_study.trends)


def test_slopes_against_scipy(paper_study: Study):
    line = next(x for x in paper_study.lines["train_flops"] if (x.arch, x.ratio) == ("transformer", 44.0))
    runs = paper_study.runs.filter(
        (pl.col("arch") == "transformer") & (pl.col("preset_token_param_ratio") == 44.0)
    )
    known = stats.linregress(np.log(runs["train_flops"]), np.log(runs["loss"]))
    assert line.slope == pytest.approx(known.slope, rel=1e-10)
    assert line.standard_error == pytest.approx(known.stderr, rel=1e-8)
    half = stats.t.ppf(0.975, 5) * known.stderr
    assert line.interval().high - line.slope == pytest.approx(half, rel=1e-8)


def test_two_runs_give_a_line_without_an_interval(paper_study: Study):
    line = next(x for x in paper_study.lines["train_flops"] if (x.arch, x.ratio) == ("transformer", 1100.0))
    assert line.n == 2
    assert np.isnan(line.interval().low)


def synthetic_lines(slopes: tuple[float, ...], noise: float) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for ratio, slope in zip((22.0, 44.0, 110.0), slopes, strict=True):
        for C in np.geomspace(1e18, 1e22, 8):
            ln_loss = 3.0 + slope * np.log(C) + noise * rng.standard_normal()
            rows.append(("mlstm", "tokenparam", ratio, C, float(np.exp(ln_loss))))
    names = ["arch", "experiment_set", "preset_token_param_ratio", "train_flops", "loss"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_parallel_lines_are_told_from_others():
    same = parallel_test(fit_lines(synthetic_lines((-0.05, -0.05, -0.05), 0.003)), "mlstm")
    other = parallel_test(fit_lines(synthetic_lines((-0.05, -0.05, -0.06), 0.003)), "mlstm")
    assert same is not None
    assert other is not None
    assert same.p_value > 0.05
    assert same.common_slope.low < -0.05 < same.common_slope.high
    assert other.p_value < 1e-3


def test_hull_and_front_by_hand():
    C = np.array([1.0, 2.0, 3.0, 4.0, 2.5])
    loss = np.array([4.0, 3.5, 2.0, 1.9, 3.0])
    assert list(linear_hull(C, loss)) == [0, 2, 3]
    assert list(pareto(C, loss)) == [0, 1, 4, 2, 3]
    assert list(pareto(C, loss[::-1].copy())) == [0, 1]


def test_pareto_counts(paper_study: Study):
    found = paper_study.dominance
    assert found is not None
    assert (found.beaten, found.transformer_runs, found.beaten_xlstm, found.xlstm_runs) == (29, 31, 9, 35)
    assert all(gap.log_loss_gap.value < 0 for gap in found.gaps)


def test_copies_are_counted(paper_runs: pl.DataFrame):
    assert duplicates(paper_runs) == 0
    assert duplicates(pl.concat([paper_runs, paper_runs.head(3)])) == 3


def test_excluded_runs_stay_out(published: PublishedStudy, paper_runs: pl.DataFrame):
    assert published.runs.height == 499
    assert paper_runs.height == 489


def test_batch_experiment_on_a_grid_with_two_batches(paper_runs: pl.DataFrame):
    """The set is not given; a copy of a grid with another batch and 0.01 nats more loss stands in for it."""
    grid = paper_runs.filter(
        (pl.col("arch") == "mlstm") & (pl.col("budget") == 1e20) & (pl.col("experiment_set") == "isoflop")
    )
    other = grid.with_columns(
        experiment_set=pl.lit("batch_size"), batch_size=pl.lit(256, pl.Int64), loss=pl.col("loss") + 0.01
    )
    assert batch_effects(paper_runs) == ()
    (effect,) = batch_effects(pl.concat([paper_runs, other]), resamples=200)
    assert (effect.small_batch, effect.large_batch, effect.runs) == (128, 256, (44, 44))
    assert effect.loss_change.value == pytest.approx(0.01, abs=1e-9)
    assert effect.loss_change.low < 0.01 < effect.loss_change.high
    assert effect.N_ratio.value == pytest.approx(1.0)


def test_a_third_context_changes_nothing_in_code(published: PublishedStudy, paper_study: Study):
    """Runs at 16,384 are not given; copies with that context stand in for them."""
    from sweeps.study.contexts import all_context_laws
    from sweeps.study.isoflop import fit_curves

    longer = paper_study.runs.filter(pl.col("context_length") == 8192).with_columns(
        context_length=pl.lit(16384, pl.Int64)
    )
    curves = fit_curves(pl.concat([paper_study.runs, longer]), resamples=50)
    law = next(x for x in all_context_laws(curves) if (x.arch, x.quantity, x.budget) == ("mlstm", "N", 1e19))
    assert law.contexts == (2048, 8192, 16384)
    assert curves_of(curves, "mlstm", 16384) is not None


def test_study_needs_its_columns(published: PublishedStudy):
    from sweeps.laws import FitError

    with pytest.raises(FitError, match="no column experiment_set"):
        study_runs(published.runs.drop("experiment_set"))
