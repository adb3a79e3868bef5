"""`analyse` from a run table to comparisons, on good tables and on hostile ones; results as JSON and text."""

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.laws import Analysis, Estimate, FitError, Flag, LawFit, LawSettings, analyse, from_json, to_json
from sweeps.laws.text import describe
from tests.sweeps.laws.grids import HOFFMANN, closed_form_N, grid, run_table

WORSE = {**HOFFMANN, "B": 480.0}
SETTINGS = LawSettings(resamples=150, target_budgets=(1e22,))


def two_architectures(noise: float = 0.002) -> pl.DataFrame:
    better = run_table(grid(HOFFMANN, noise=noise, seed=1), "mlstm")
    worse = run_table(grid(WORSE, noise=noise, seed=2), "transformer")
    return pl.concat([better, worse])


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(two_architectures(), SETTINGS)


def test_groups_hold_everything(analysis: Analysis) -> None:
    assert [(g.arch, g.n_runs) for g in analysis.groups] == [("mlstm", 35), ("transformer", 35)]
    group = analysis.groups[0]
    assert len(group.parabolas) == 5
    assert set(group.power_laws) == {"N", "D", "loss"}
    assert [fit.law for fit in group.parametric] == ["chinchilla", "chinchilla"]
    assert group.parametric[0].estimator != group.parametric[1].estimator
    assert set(group.diagnostics) >= {"hold_out", "model_selection", "sensitivity", "checklist", "approach_1"}


def test_intervals_hold_the_truth(analysis: Analysis) -> None:
    for group, surface in zip(analysis.groups, (HOFFMANN, WORSE), strict=True):
        truth = float(closed_form_N(np.array(1e22), surface))
        by_law = next(o for o in group.optima if o.budget == 1e22)
        assert by_law.method.startswith("chinchilla law")
        assert by_law.N.low < truth < by_law.N.high
        assert by_law.extrapolation == pytest.approx(10)
        a = group.parametric[0].derived["a"]
        assert a.low < 0.28 / 0.62 < a.high


def test_inside_the_grid_the_vertex_answers(analysis: Analysis) -> None:
    group = analysis.groups[0]
    first = next(o for o in group.optima if o.budget == 1e19)
    assert first.method == "isoflop parabolas"
    assert first.N.value == pytest.approx(group.parabolas[2].N.value, rel=1e-9)


def test_the_predicted_bias_is_that_of_the_surface(analysis: Analysis) -> None:
    for parabola in analysis.groups[0].parabolas:
        assert parabola.predicted_bias == pytest.approx(0.0135, abs=0.006)


def test_comparison_against_the_closed_form(analysis: Analysis) -> None:
    found = {c.budget: c for c in analysis.comparisons}
    assert set(found) == {1e17, 1e18, 1e19, 1e20, 1e21, 1e22}
    for budget, comparison in found.items():
        losses = [optimal_loss(budget, surface) for surface in (HOFFMANN, WORSE)]
        assert comparison.better == "mlstm"
        assert comparison.decided
        difference, ratio = comparison.loss_difference, comparison.compute_ratio
        assert difference.low < losses[0] - losses[1] < difference.high
        # At the optimum L - E is proportional to C^-(alpha beta / (alpha + beta)).
        power = 0.34 * 0.28 / 0.62
        truth = ((losses[1] - 1.69) / (losses[0] - 1.69)) ** (1 / power)
        assert ratio.value == pytest.approx(truth, rel=0.1)
        assert ratio.low < ratio.value < ratio.high


def optimal_loss(C: float, s: dict[str, float]) -> float:
    N = float(closed_form_N(np.array(C), s))
    return s["E"] + s["A"] / N ** s["alpha"] + s["B"] / (C / 6 / N) ** s["beta"]


def test_equal_architectures_are_undecided() -> None:
    same = [
        run_table(grid(noise=0.003, seed=seed), arch) for seed, arch in enumerate(("mlstm", "transformer"))
    ]
    found = analyse(pl.concat(same), LawSettings(resamples=150)).comparisons
    assert sum(c.decided for c in found) <= 1
    assert all(c.loss_difference.low < 0 < c.loss_difference.high for c in found if not c.decided)


def test_same_seed_same_json_whatever_the_row_order(analysis: Analysis) -> None:
    again = analyse(two_architectures(), SETTINGS)
    assert to_json(again, draws=True) == to_json(analysis, draws=True)
    shuffled = analyse(two_architectures().sample(fraction=1.0, shuffle=True, seed=3), SETTINGS)
    for one, two in zip(shuffled.groups, analysis.groups, strict=True):
        for p, q in zip(one.parametric, two.parametric, strict=True):
            assert p.params["alpha"].value == pytest.approx(q.params["alpha"].value, abs=1e-6)
        assert one.power_laws["N"].exponent.value == pytest.approx(
            two.power_laws["N"].exponent.value, abs=1e-10
        )


def test_contexts_are_groups_of_their_own_and_give_a_law() -> None:
    tables = []
    for context in (512, 2048):
        slower = {**HOFFMANN, "A": HOFFMANN["A"] * (context / 512) ** -0.1}
        tables.append(run_table(grid(slower, seed=context), "transformer", context))
    found = analyse(pl.concat(tables), LawSettings(resamples=50))
    assert [g.context_length for g in found.groups] == [512, 2048]
    assert not found.comparisons
    laws = {law.quantity: law for law in found.context_laws if law.budget == 1e19}
    # N* is proportional to A^(1/(alpha + beta)), and the parabola's bias is the same at both contexts.
    assert laws["N"].exponent.value == pytest.approx(-0.1 / 0.62, abs=1e-3)
    assert laws["N"].contexts == (512, 2048)
    assert "two-contexts" in {flag.code for flag in laws["N"].flags}


def test_budgets_that_nobody_named_are_inferred() -> None:
    table = run_table(grid(noise=0.002))
    spent = pl.col("train_flops") * np.random.default_rng(0).uniform(0.98, 1.02, table.height)
    unnamed = table.with_columns(train_flops=spent, budget=pl.lit(None, dtype=pl.Float64))
    group = analyse(unnamed, LawSettings(resamples=0)).groups[0]
    assert [p.budget for p in group.parabolas] == pytest.approx([1e17, 1e18, 1e19, 1e20, 1e21], rel=0.02)
    assert "budgets-inferred" in {flag.code for flag in group.flags}


def test_given_flops_are_used() -> None:
    table = run_table(grid()).with_columns(train_flops=pl.lit(None, dtype=pl.Float64))
    given = {("transformer", 512): lambda N, D: 6.0 * N * D}
    group = analyse(table, LawSettings(resamples=0), flops=given).groups[0]
    assert group.diagnostics["flops"][0]["source"] == "given FLOP function"  # type: ignore[index]
    assert group.parabolas[0].D.value == pytest.approx(1e17 / 6 / group.parabolas[0].N.value, rel=1e-9)


def hostile(name: str) -> pl.DataFrame:
    table = run_table(grid(noise=0.002))
    rows = pl.int_range(pl.len())
    return {
        "nan": table.with_columns(loss=pl.when(rows == 3).then(float("nan")).otherwise("loss")),
        "infinite": table.with_columns(loss=pl.when(rows == 3).then(float("inf")).otherwise("loss")),
        "negative": table.with_columns(loss=pl.when(rows == 3).then(-1.0).otherwise("loss")),
        "failed": table.with_columns(status=pl.when(rows < 5).then(pl.lit("failed")).otherwise("status")),
        "constant": table.with_columns(loss=pl.lit(3.0)),
        "one budget": table.filter(pl.col("budget") == 1e19),
        "two sizes": run_table(grid(sizes=2, noise=0.002)),
        "one run": table.head(1),
        "no budgets": table.with_columns(
            budget=pl.lit(None, dtype=pl.Float64), train_flops=np.geomspace(1e17, 1e21, table.height)
        ),
        "text": table.with_columns(loss=pl.lit("3.1")),
        "all failed": table.with_columns(status=pl.lit("failed")),
        "all nan": table.with_columns(loss=pl.lit(float("nan"))),
        "one shape": table.with_columns(N=pl.lit(1e8)),
        "inverted": table.with_columns(loss=6.0 - pl.col("loss")),
    }[name]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nan", "invalid-rows"),
        ("infinite", "invalid-rows"),
        ("negative", "invalid-rows"),
        ("failed", "unfinished-runs"),
        ("constant", "no-power-law"),
        ("one budget", "no-power-law"),
        ("two sizes", "no-fit"),
        ("one run", "no-fit"),
        ("no budgets", "no-fit"),
        ("text", "no-fit"),
        ("all failed", "no-fit"),
        ("all nan", "no-fit"),
        ("one shape", "no-fit"),
        ("inverted", "no-power-law"),
    ],
)
def test_hostile_tables_become_flags(name: str, code: str) -> None:
    analysis = analyse(hostile(name), LawSettings(resamples=20))
    group = analysis.groups[-1]
    assert code in {flag.code for flag in group.flags}
    kept = from_json(to_json(analysis))
    assert kept.groups[-1].flags == group.flags
    assert code in describe(analysis)
    assert describe(kept) == describe(analysis)


@pytest.mark.parametrize("name", ["all nan", "one run"])
def test_a_good_group_beside_a_bad_one_is_fitted_all_the_same(name: str) -> None:
    good = run_table(grid(noise=0.002), "mlstm")
    settings = LawSettings(resamples=20)
    both = analyse(pl.concat([hostile(name), good], how="diagonal_relaxed"), settings)
    alone = analyse(good, settings)
    assert [group.arch for group in both.groups] == ["mlstm", "transformer"]
    assert both.groups[0].parabolas == alone.groups[0].parabolas
    assert both.groups[0].parametric[0].params == alone.groups[0].parametric[0].params
    assert not both.groups[1].parametric


def test_bad_settings_and_tables_are_errors() -> None:
    table = run_table(grid())
    for settings, message in (
        (LawSettings(law="newton"), "law 'newton'"),
        (LawSettings(law="optimal-loss"), "laws of N and D"),
        (LawSettings(level=1.5), "level = 1.5"),
        (LawSettings(resamples=-1), "resamples = -1"),
    ):
        with pytest.raises(FitError, match=message):
            analyse(table, settings)
    with pytest.raises(FitError, match="'arch' is missing"):
        analyse(table.drop("arch"))


def test_an_empty_table_says_so() -> None:
    found = analyse(run_table(grid()).head(0), SETTINGS)
    assert not found.groups
    assert [flag.code for flag in found.flags] == ["no-runs"]


def test_json_round_trip_is_exact(analysis: Analysis) -> None:
    text = to_json(analysis, draws=True)
    back = from_json(text)
    assert to_json(back, draws=True) == text
    assert isinstance(back, Analysis)
    assert back.groups[0].parametric[0].params == analysis.groups[0].parametric[0].params
    assert np.array_equal(back.groups[0].parametric[0].draws, analysis.groups[0].parametric[0].draws)
    assert back.comparisons == analysis.comparisons
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_draws_are_left_out_unless_asked_for(analysis: Analysis) -> None:
    assert from_json(to_json(analysis)).groups[0].parametric[0].draws is None
    assert len(to_json(analysis)) < len(to_json(analysis, draws=True)) / 2


@given(
    values=st.lists(st.floats(), min_size=1, max_size=5),
    text=st.text(max_size=20),
    count=st.integers(),
)
def test_json_keeps_every_float(values: list[float], text: str, count: int) -> None:
    fit = LawFit(
        law=text,
        formula="",
        estimator="",
        params={f"p{i}": Estimate(value=v, low=-v, high=v) for i, v in enumerate(values)},
        objective=values[0],
        n_points=count,
        diagnostics={"text": text, "count": count},
        residuals=np.array(values),
        flags=(Flag(code=text, severity="info", message=text),),
    )
    back = from_json(to_json(fit))
    assert np.array_equal(back.residuals, fit.residuals, equal_nan=True)
    assert repr(replace(back, residuals=fit.residuals)) == repr(fit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a result"),
        ('{"isoflop": "analysis", "version": 99, "result": {}}', "version 99"),
        ('{"isoflop": "analysis", "version": 1, "result": {}}', "missing"),
        ('{"isoflop": "analysis", "version": 1, "result": {"surprise": 1}}', "no field 'surprise'"),
        ('{"isoflop": "law-fit", "version": 1, "result": {"objective": "low"}}', "not a number"),
    ],
)
def test_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_text_shows_every_number_with_its_interval(analysis: Analysis) -> None:
    text = describe(analysis)
    alpha = analysis.groups[0].parametric[0].params["alpha"]
    assert f"{alpha.value:.6g} [{alpha.low:.6g}, {alpha.high:.6g}]" in text
    assert "mlstm, context 512, 35 runs" in text
    assert "1e+22" in text
    assert all(len(line) < 160 or "warning" in line for line in text.splitlines())


def test_coefficients_keep_twelve_digits(analysis: Analysis) -> None:
    document = json.loads(to_json(analysis))
    stored = document["result"]["groups"][0]["parametric"][0]["params"]["A"]["value"]
    assert math.isclose(stored, analysis.groups[0].parametric[0].params["A"].value, rel_tol=0)
