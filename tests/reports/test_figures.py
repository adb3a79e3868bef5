"""What the figures draw, against numbers computed another way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.figures import comparison, isoflop, power_laws, save, surface
from reports.figures.charts import Figure, log_ticks
from reports.figures.isoflop import parabola_loss
from reports.view import View, make_view
from sweeps.laws.types import Comparison, Estimate
from tests.reports import synthetic


@pytest.fixture(scope="module")
def view() -> View:
    table = synthetic.run_table()
    return make_view(table, synthetic.analysis(table, targets=(1e13,)), synthetic.provenance())


def rows(figure: Figure, panel: int) -> list[dict]:
    return [row for data in figure.panels[panel].chart.to_dict()["datasets"].values() for row in data]


def test_parabola_has_its_minimum_at_the_optimum(view: View):
    found = view.groups[0].parabolas[2]
    N = np.geomspace(found.N_low, found.N_high, 20_001)
    loss = parabola_loss(found, N)
    assert N[loss.argmin()] == pytest.approx(found.N.value, rel=1e-3)
    assert loss.min() == pytest.approx(found.loss.value, rel=1e-6)


def test_isoflop_panels_share_their_scales(view: View):
    specs = [panel.chart.to_dict() for panel in isoflop(view, 128).panels]
    domains = [[s["layer"][0]["encoding"][axis]["scale"]["domain"] for axis in "xy"] for s in specs]
    assert domains[0] == domains[1]


def test_a_color_for_each_budget(view: View):
    drawn = isoflop(view, 128)
    assert [entry.label for entry in drawn.legend] == ["1.0e11 FLOPs", "3.0e11 FLOPs", "1.0e12 FLOPs"]
    assert len({entry.color for entry in drawn.legend}) == 3


def test_laws_are_dashed_beyond_the_grid(view: View):
    lines = [row for row in rows(power_laws(view, 128), 0) if "inside" in row]
    assert max(row["C"] for row in lines if row["inside"]) == 1e12
    assert min(row["C"] for row in lines if not row["inside"]) == 1e12
    law = view.groups[0].power_laws["N"]
    last = max((row for row in lines if row["arch"] == "transformer"), key=lambda row: row["C"])
    assert last["y"] == pytest.approx(float(law(1e13)), rel=1e-5)


def test_comparison_keeps_one_direction_whoever_is_better(view: View):
    first = {row["C"]: row for row in rows(comparison(view), 0) if "gap" in row}
    turned = [c if c.budget > 1e11 else _turned(c) for c in view.analysis.comparisons]
    other = View(view.runs, replace(view.analysis, comparisons=tuple(turned)), view.provenance)
    second = {row["C"]: row for row in rows(comparison(other), 0) if "gap" in row}
    for name in ("gap", "gap_low", "gap_high", "ratio", "ratio_low", "ratio_high"):
        assert second[1e11][name] == pytest.approx(first[1e11][name], rel=1e-5)


def _turned(c: Comparison) -> Comparison:
    gap, ratio = c.loss_difference, c.compute_ratio
    return replace(
        c,
        better=c.other,
        other=c.better,
        loss_difference=Estimate(value=-gap.value, low=-gap.high, high=-gap.low),
        compute_ratio=Estimate(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low),
    )


def test_residuals_stand_beside_their_runs(view: View):
    drawn = [row for row in rows(surface(view, 128), 0) if "residual" in row]
    assert len(drawn) == 36
    for row in drawn:
        expected = synthetic.surface(row["arch"], np.float64(row["N"]), np.float64(row["D"]))
        assert row["predicted"] == pytest.approx(float(expected), rel=1e-4)


def test_no_surface_where_rows_and_residuals_do_not_match(view: View):
    fewer = make_view(
        view.runs.head(10).select(pl.exclude("row", "g", "b", "gap")), view.analysis, view.provenance
    )
    assert surface(fewer, 128) is None


@given(st.floats(min_value=1e-3, max_value=1e24), st.floats(min_value=1.02, max_value=1e9))
def test_ticks_lie_inside_and_are_few(low: float, factor: float):
    ticks = log_ticks(low, low * factor)
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


def test_save_without_variables(view: View, tmp_path: Path):
    text = save(isoflop(view, 128), tmp_path / "isoflop.svg").read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "var(--" not in text
    assert "Transformer" in text
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        save(isoflop(view, 128), tmp_path / "isoflop.pdf")
