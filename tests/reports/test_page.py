"""The page as a whole: well formed, self-contained, complete, and safe with hostile names."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from reports import Provenance, render, write
from reports import page as page_module
from sweeps.laws import LawSettings, analyse
from sweeps.laws.types import Analysis, Estimate, Flag
from tests.reports import synthetic

LLAMA = Path(__file__).parents[3] / "shared/data/laws/llama3_isoflop.csv"
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle", "rect"}


class Document(HTMLParser):
    """Elements, attributes and text of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"] and self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def document(page: str) -> Document:
    return Document(page)


def figure_data(page: str) -> dict:
    return json.loads(re.search(r'id="figure-data">(.*?)</script>', page, re.DOTALL)[1])


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(document: Document):
    ids = Counter(attributes["id"] for _, attributes in document.elements if "id" in attributes)
    assert max(ids.values()) == 1
    targets = [a["href"][1:] for a in document.attributes("a") if a["href"].startswith("#")]
    assert targets
    assert set(targets) <= set(ids)


def test_nothing_is_loaded_from_outside(page: str, document: Document):
    assert not document.attributes("link")
    assert not document.attributes("img")
    assert all("src" not in attributes for _, attributes in document.elements)
    assert "@import" not in re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]


def test_small(page: str):
    assert len(page.encode()) < 1_200_000


def test_one_vega_bundle_and_a_chart_for_every_panel(page: str, document: Document):
    assert len(document.attributes("script")) == 5
    panels = {a["id"] for a in document.attributes("div") if a.get("class") == "chart"}
    drawn = figure_data(page)
    assert set(drawn["charts"]) == panels
    assert len(panels) == 13
    named = set(re.findall(r'"name": "(data-\w+)"', json.dumps(drawn["charts"])))
    assert named == set(drawn["datasets"])


def test_runs_are_stored_once_for_all_panels(page: str):
    holders = [rows for rows in figure_data(page)["datasets"].values() if rows and "peak_lr" in rows[0]]
    assert [len(rows) for rows in holders] == [36]


def test_every_figure_has_a_caption_and_a_text_alternative(document: Document):
    assert len(document.attributes("figure")) == len(document.attributes("figcaption")) == 7
    charts = [a for a in document.attributes("div") if a.get("class") == "chart"]
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in charts)


def test_one_h1_and_no_skipped_heading_level(document: Document):
    levels = [int(tag[1]) for tag, _ in document.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))


def test_every_run_stands_in_the_table_linked_to_mlflow(runs: pl.DataFrame, document: Document):
    links = {a["href"] for a in document.attributes("a")}
    for name, key in runs.select("run_name", "mlflow_run_id").iter_rows():
        assert name in document.text
        assert f"http://127.0.0.1:5000/#/experiments/1/runs/{key}" in links


def test_failed_run_with_its_reason(document: Document):
    assert "transformer-broken" in document.text
    assert "out of memory at step 12" in document.text


def test_warnings_stand_before_the_first_figure(document: Document):
    warning = document.text.index("opens downwards, so it has no optimum")
    assert (
        document.text.index("Before you rely on it")
        < warning
        < document.text.index("Loss against model size")
    )


def test_the_unigram_baseline_is_drawn(page: str):
    bars = next(rows for rows in figure_data(page)["datasets"].values() if rows and "who" in rows[0])
    assert (bars[0]["who"], bars[0]["label"]) == ("Unigram model", "3.241")
    assert {row["who"] for row in bars[1:]} == {"Transformer", "mLSTM"}


def test_provenance_is_told(document: Document):
    for told in (
        "9f2c6e0b7f7bd1d0",
        "81.2 MB (81,234,567)",
        "by file, 95% train",
        "torch 2.13.0",
        "2075077",
        "7 min 42 s",
        "isoflop report quick",
        "budgets: [1.0e+11, 3.0e+11, 1.0e+12]",
        "24 Nov 2026, 04:40 UTC",
    ):
        assert told in document.text


def test_estimator_and_six_digits_of_every_coefficient(document: Document):
    assert "sum of Huber(1e-3) of ln L residuals" in document.text
    assert "0.42000000" in document.text
    assert "Quadratic zone share" in document.text


def test_checks_of_the_fits_are_tables(document: Document):
    tables = {a["id"] for a in document.attributes("table")}
    assert {"table-transformer-128-holdout", "table-transformer-128-checklist"} <= tables
    assert "embeddings included" in document.text


def test_same_input_same_bytes(page: str, runs: pl.DataFrame, analysis: Analysis):
    assert render(runs, analysis, synthetic.provenance()) == page


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_from_outside_cannot_break_the_page(runs: pl.DataFrame, analysis: Analysis):
    hostile = runs.with_columns(
        run_name=pl.lit(EVIL),
        error=pl.lit(EVIL),
        device=pl.lit(EVIL),
        arch=pl.col("arch").replace("mlstm", EVIL),
    )
    flag = Flag(code=EVIL, severity="error", message=EVIL)
    first, second = analysis.groups
    renamed = replace(second, arch=EVIL, flags=(flag,), diagnostics={EVIL: [{EVIL: EVIL}]})
    compared = tuple(replace(c, other=EVIL) for c in analysis.comparisons)
    made = synthetic.provenance(
        sweep=EVIL,
        source=EVIL,
        spec_yaml=EVIL,
        data={EVIL: EVIL},
        versions={EVIL: EVIL},
        mlflow_url="javascript:x",
    )
    text = render(hostile, replace(analysis, groups=(first, renamed), comparisons=compared), made)
    document = Document(text)
    assert len(document.attributes("script")) == 5
    assert not document.attributes("img")
    assert "javascript:x" not in text
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)
    assert EVIL in json.dumps(figure_data(text), ensure_ascii=False)


def test_published_runs_without_grid_names_or_provenance(analysis: Analysis):
    table = synthetic.run_table().select("arch", "context_length", "N", "D", "loss")
    bare = tuple(replace(group, parabolas=(), power_laws={}) for group in analysis.groups)
    made = Provenance(sweep="published", created_at="long ago", source="run table runs.csv")
    document = Document(render(table, replace(analysis, groups=bare, comparisons=(), settings={}), made))
    assert "Loss against compute" in document.text
    assert "These runs form no IsoFLOP grid" in document.text
    assert "row 35" in document.text


def test_numbers_that_are_not_known(runs: pl.DataFrame, analysis: Analysis):
    nan = Estimate(value=math.nan)
    holes = runs.with_columns(train_flops=None, budget=None, bpb=pl.lit(math.nan), peak_lr=pl.lit(math.nan))
    group = analysis.groups[0]
    parabolas = tuple(replace(p, N=nan, D=nan, loss=nan, usable=True) for p in group.parabolas)
    optima = tuple(replace(o, N=nan, D=nan, loss=nan) for o in group.optima)
    unknown = replace(group, parabolas=parabolas, optima=optima)
    compared = tuple(replace(c, loss_difference=nan, compute_ratio=nan) for c in analysis.comparisons)
    text = render(holes, replace(analysis, groups=(unknown,), comparisons=compared), synthetic.provenance())
    assert "NaN" not in json.dumps(figure_data(text))
    assert not re.search(r"\bnan\b", Document(text).text)


def test_no_runs_at_all():
    empty = Analysis(groups=(), comparisons=(), settings={})
    nothing = pl.DataFrame(
        schema={"arch": pl.String, "context_length": pl.Int64, "N": float, "D": float, "loss": float}
    )
    assert (
        "These runs do not support an answer."
        in Document(render(nothing, empty, synthetic.provenance())).text
    )


def test_a_missing_column_is_named(analysis: Analysis):
    with pytest.raises(ValueError, match="no column 'loss'"):
        render(synthetic.run_table().drop("loss"), analysis, synthetic.provenance())


def test_write_replaces_the_file_in_one_step(
    tmp_path: Path, runs: pl.DataFrame, analysis: Analysis, page: str, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "new" / "report.html"
    write(target, runs, analysis, synthetic.provenance())
    assert target.read_text(encoding="utf-8") == page
    monkeypatch.setattr(page_module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(target, runs, analysis, synthetic.provenance())
    assert target.read_text(encoding="utf-8") == page
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_what_the_fits_really_return():
    table = synthetic.run_table()
    settings = LawSettings(resamples=40, target_budgets=(1e13,))
    document = Document(render(table, analyse(table, settings), synthetic.provenance()))
    assert "Extrapolated to 1.0e13 FLOPs" in document.text
    assert "Chinchilla law" in document.text
    tables = {a["id"] for a in document.attributes("table")}
    wanted = (
        "parabolas",
        "predictions",
        "power-laws",
        "comparisons",
        "law-parameters",
        "fit-diagnostics",
        "runs",
    )
    assert {f"table-{name}" for name in wanted} <= tables
    assert {f"table-mlstm-128-{name}" for name in ("hold_out", "model_selection", "checklist")} <= tables


def test_published_isoflops():
    if not LLAMA.exists():
        pytest.skip("the published run data are not here")
    columns = {"budget_flops": "budget", "params": "N", "tokens": "D"}
    table = pl.read_csv(LLAMA).rename(columns).filter(condition="exp_loss").select(*columns.values(), "loss")
    table = table.with_columns(arch=pl.lit("transformer"), context_length=8192)
    made = Provenance(sweep="llama 3", created_at="2026-11-24", source="run table llama3_isoflop.csv")
    text = render(table, analyse(table, LawSettings(resamples=40)), made)
    assert "At 1.0e22 FLOPs, the Transformer does best with" in Document(text).text
    assert len(figure_data(text)["charts"]) == 8
