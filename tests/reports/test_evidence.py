"""Frontier, surface, serving costs, loss curves, hold-out and live page: what they show is what was given."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from reports import figures, run_tables, tables
from reports.live import Cell, Live, Step, markdown, page
from reports.view import View, make_view
from sweeps.laws import Analysis, Estimate, LawSettings, analyse
from sweeps.laws.predictions import law_and_params
from sweeps.laws.types import OptimumPrediction
from sweeps.provisional import Provisional, provisional
from tests.browser import sweep
from xlstm.accounting import count_parameters, decode_flops


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return sweep.run_table()


@pytest.fixture(scope="module")
def fitted(table: pl.DataFrame) -> Analysis:
    return analyse(table, LawSettings(resamples=20, target_budgets=(1e13,)))


@pytest.fixture(scope="module")
def view(table: pl.DataFrame, fitted: Analysis) -> View:
    return make_view(table, fitted, sweep.provenance(), sweep.curves(table))


def rows(figure: figures.Figure, panel: int, mark: str) -> list[dict]:
    """Data of the first layer with a mark, each chart held against Altair's schema."""
    spec = figure.panels[panel].chart.to_dict()
    for layer in spec.get("layer", [spec]):
        if layer["mark"]["type"] == mark:
            name = layer.get("data", spec.get("data"))["name"]
            return spec["datasets"][name]
    raise AssertionError(f"no {mark}")


def test_the_frontier_falls_and_no_run_lies_below_it(view: View):
    figure = figures.frontier(view, 128)
    points, edge = rows(figure, 0, "point"), rows(figure, 0, "line")
    for arch in view.archs:
        steps = [row for row in edge if row["arch"] == arch]
        losses = [row["loss"] for row in steps[:-1]]
        assert losses == sorted(losses, reverse=True)
        for run in (row for row in points if row["arch"] == arch):
            bought = min(step["loss"] for step in steps if step["C"] <= run["C"])
            assert bought <= run["loss"]


def test_a_contour_is_where_the_law_has_its_loss(view: View):
    figure = figures.contours(view, 128)
    assert [panel.arch for panel in figure.panels] == ["transformer", "mlstm"]
    law, params = law_and_params(view.at_context(128)[0].parametric[0])
    lines = rows(figure, 0, "line")
    assert len({row["level"] for row in lines}) == 9
    for row in lines[::7]:
        assert law.predict(params, N=row["N"], D=row["D"])[0] == pytest.approx(row["level"], rel=1e-4)


def test_decode_costs_are_those_of_a_planned_model(view: View):
    figure = figures.decode_costs(view, 512)
    points = rows(figure, 0, "line")
    config = next(
        c for c in sweep.models() if c.arch == "transformer" and count_parameters(c) == points[0]["N"]
    )
    assert [p["flops"] for p in points if p["arch"] == "transformer"] == [
        pytest.approx(decode_flops(config, p["seen"]), rel=1e-5) for p in points if p["arch"] == "transformer"
    ]
    mlstm = {p["bytes"] for p in points if p["arch"] == "mlstm"}
    assert len(mlstm) == 1


def test_loss_curves_are_thinned_and_keep_their_ends(view: View, table: pl.DataFrame):
    long = pl.concat(
        [
            pl.DataFrame(
                {"run_key": [key] * 2000, "D": np.linspace(D / 2000, D, 2000), "loss": np.full(2000, loss)}
            )
            for key, D, loss in table.select("run_key", "D", "loss").iter_rows()
        ]
    )
    figure = figures.curves(replace(view, curves=long), 128)
    points = rows(figure, 0, "line")
    assert len(points) <= 61 * 18
    ends = {row["run"]: row["D"] for row in points}
    for name, D in table.filter(pl.col("arch") == "transformer").select("run_name", "D").iter_rows():
        if name in ends:
            assert ends[name] == pytest.approx(D, rel=1e-3)


def test_no_curves_without_histories(table: pl.DataFrame, fitted: Analysis):
    assert figures.curves(make_view(table, fitted, sweep.provenance()), 128) is None


def test_hold_out_has_a_row_an_estimator(view: View):
    found = tables.hold_out(view)
    assert len(found.rows) == 4 * 3
    assert [column.title for column in found.columns][-1] == "Beyond in D"


def test_context_laws_show_both_contexts(view: View):
    found = tables.context_laws(view)
    assert [column.title for column in found.columns][-2:] == ["T = 128", "T = 512"]
    assert found.rows


def test_training_costs_add_up(view: View, table: pl.DataFrame):
    costs = run_tables.training_costs(view)
    hours = [column.title for column in costs.columns].index("Hours")
    assert sum(row[hours].value for row in costs.rows) == pytest.approx(table["wall_time_s"].sum() / 3600)


def moment(**changes: object) -> Live:
    N = Estimate(value=1e5, low=5e4, high=2e5)
    best = OptimumPrediction(budget=1e13, N=N, D=N, loss=N, method="isoflop parabolas", extrapolation=10.0)
    law = Provisional(arch="mlstm", context_length=128, runs=6, exponent=Estimate(value=0.5), optimum=best)
    made = Live(
        sweep="quick",
        stage="training",
        at="12:00:00",
        cells=[Cell(arch="mlstm", budget=1e11, done=2, running=1, failed=1, planned=5)],
        left_s=90.0,
        trainings=["mlstm-1: step 3 of 9"],
        failures=[("`evil`", "<img src=x>\nsecond line")],
        laws=[law],
        history=[("mLSTM, context 128", [Step(runs=6, N=1e5, low=5e4, high=2e5)])],
    )
    return replace(made, **changes)


def test_the_live_page_refreshes_until_the_sweep_is_done():
    assert 'http-equiv="refresh"' in page(moment())
    ended = [replace(moment().cells[0], done=4, running=0)]
    assert 'http-equiv="refresh"' not in page(moment(cells=ended))
    assert "<img" not in page(moment())


def test_live_markdown_says_how_sure_and_what_failed():
    text = markdown(moment())
    assert "**2 of 5 runs done**, 1 running, 1 failed; time left: about 90 s" in text
    assert "an extrapolation N* = 100 k (50.0 k to 200 k)" in text
    assert "6 runs x/2.00" in text
    assert "`'evil'`: `<img src=x> second line`" in text


def test_a_law_so_far_needs_three_sizes_at_two_budgets(table: pl.DataFrame):
    own = table.filter((pl.col("arch") == "mlstm") & (pl.col("context_length") == 128)).sort("budget", "N")
    (early,) = provisional(own.head(8), LawSettings(resamples=10))
    assert early.optimum is None
    assert "so far 1 has them" in early.note
    (later,) = provisional(own, LawSettings(resamples=50, target_budgets=(1e13,)))
    assert later.optimum.budget == 1e13
    assert later.exponent.low < later.exponent.value < later.exponent.high
