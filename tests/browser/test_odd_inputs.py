"""Sweeps that are not as one would wish: readable, escaped, nothing broken."""

from dataclasses import replace

import polars as pl
import pytest

from reports import render
from sweeps.laws import Analysis, LawSettings, analyse
from tests.browser import sweep
from tests.browser.conftest import Open, Opened

SCRIPT = "<script>alert(1)</script>"
EMOJI = "run \N{ROCKET} \N{SNOWMAN} ünïcode"


def sound(opened: Opened) -> None:
    """No unfinished number, no failed chart, nothing wider than the page."""
    text = opened.page.locator("main").inner_text()
    assert "could not be drawn" not in text
    for stray in ("undefined", "NaN", "[object", "Infinity"):
        assert stray not in text
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def fit(table: pl.DataFrame, **settings: object) -> Analysis:
    return analyse(table, LawSettings(**{"resamples": 20, "target_budgets": (1e13,), **settings}))


def test_one_architecture(open_page: Open, table: pl.DataFrame):
    own = table.filter((pl.col("arch") == "mlstm") & (pl.col("context_length") == 128))
    opened = open_page(render(own, fit(own), sweep.provenance()))
    sound(opened)
    assert opened.page.locator(".choices").count() == 0
    assert opened.page.locator("#what-if .card").count() == 1
    assert "the mLSTM does best with" in opened.page.locator("h1").inner_text()


def test_one_budget(open_page: Open, table: pl.DataFrame):
    own = table.filter((pl.col("budget") == 1e12) & (pl.col("context_length") == 128))
    sound(open_page(render(own, fit(own), sweep.provenance())))


def test_a_thousand_runs(open_page: Open, table: pl.DataFrame, fitted: Analysis):
    many = pl.concat(
        [
            table.with_columns(
                pl.format("{}-{}", "run_name", pl.lit(i)).alias("run_name"), seed=pl.lit(i, pl.Int64)
            )
            for i in range(14)
        ]
    )
    assert many.height > 1000
    html = render(many, fitted, sweep.provenance())
    assert len(html.encode()) < 5_000_000
    opened = open_page(html)
    sound(opened)
    assert opened.page.locator("#table-runs tbody tr").count() == many.height


@pytest.mark.parametrize("name", [SCRIPT, EMOJI, "a" * 300, "\u202ertl {{ 7 * 7 }} ${7}"])
def test_names_of_any_kind(open_page: Open, table: pl.DataFrame, fitted: Analysis, name: str):
    named = table.with_columns(
        run_name=pl.lit(name), device=pl.lit(name), arch=pl.col("arch").replace("mlstm", name)
    )
    groups = tuple(replace(g, arch=name) if g.arch == "mlstm" else g for g in fitted.groups)
    called = {"mlstm": name, "transformer": "transformer"}
    compared = tuple(replace(c, better=called[c.better], other=called[c.other]) for c in fitted.comparisons)
    renamed = replace(fitted, groups=groups, comparisons=compared, context_laws=())
    opened = open_page(render(named, renamed, sweep.provenance(sweep=name)))
    opened.page.on("dialog", lambda dialog: opened.complaints.append("an alert"))
    sound(opened)
    opened.page.locator("#isoflop-128-0 .mark-symbol path").first.hover(force=True)
    assert name in opened.page.locator("#vg-tooltip-element").inner_text()
    box = opened.page.locator(".choices input[data-kind='arch']").nth(1)
    box.uncheck()
    assert not opened.page.locator("#isoflop-128-1").is_visible()


def test_no_fits_at_all(open_page: Open, table: pl.DataFrame):
    few = table.filter((pl.col("budget") == 1e12) & (pl.col("context_length") == 128)).head(2)
    opened = open_page(render(few, fit(few), sweep.provenance()))
    sound(opened)
    assert opened.page.locator("#what-if").count() == 0
    assert "No answer" in opened.page.locator("#answer").inner_text()


@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_huge_and_tiny_losses(open_page: Open, table: pl.DataFrame, factor: float):
    own = table.filter(pl.col("context_length") == 128).with_columns(loss=pl.col("loss") * factor)
    sound(open_page(render(own, fit(own), sweep.provenance())))
