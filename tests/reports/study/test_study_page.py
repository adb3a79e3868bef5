"""The study's page: complete, self-contained, the same bytes again; and its figures as PDF."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import altair as alt
import pytest

from reports.figures import Figure, Panel
from reports.provenance import Provenance
from reports.study.page import draw, headline, render, summary
from reports.study.pdf import save_pdf
from sweeps.study import Study, StudySettings, make_study
from sweeps.study.reproduction import reproduction
from tests.reports.test_page import Document


@pytest.fixture(scope="module")
def provenance() -> Provenance:
    return Provenance(
        sweep="paper",
        created_at="2026-11-25T12:00:00+00:00",
        source="published runs <b>& more</b>",
        regenerate="isoflop report paper",
    )


@pytest.fixture(scope="module")
def study_page(paper_study: Study, provenance: Provenance) -> str:
    return render(paper_study, provenance)


@pytest.fixture(scope="module")
def document(study_page: str) -> Document:
    return Document(study_page)


def test_ids_are_unique_and_links_lead_somewhere(document: Document):
    ids = Counter(attributes["id"] for _, attributes in document.elements if "id" in attributes)
    assert max(ids.values()) == 1
    targets = [a["href"][1:] for a in document.attributes("a") if a["href"].startswith("#")]
    assert len(targets) > 8
    assert set(targets) <= set(ids)


def test_numbers_below_zero_have_a_true_minus(document: Document):
    assert "\N{MINUS SIGN}0.0482 to \N{MINUS SIGN}0.0465" in document.text
    assert re.findall(r"(?<![\w.\])-])-\.?\d\S*", " ".join(document.words)) == []


def test_nothing_is_loaded_from_outside(study_page: str, document: Document):
    assert not document.attributes("link")
    assert all("src" not in attributes for _, attributes in document.elements)
    assert "url(" not in re.search(r"<style>(.*?)</style>", study_page, re.DOTALL)[1]
    assert "<b>& more</b>" not in study_page


def test_every_chart_has_its_place_and_its_data(study_page: str, document: Document):
    held = json.loads(re.search(r'id="figure-data">(.*?)</script>', study_page, re.DOTALL)[1])
    places = {a["id"] for a in document.attributes("div") if a.get("class") == "chart"}
    assert places == set(held["charts"])
    assert len(places) > 20
    for chart in held["charts"].values():
        names = re.findall(r'"data":\s*{"name":\s*"([^"]+)"', json.dumps(chart))
        assert any(held["datasets"][name] for name in names)


def test_paper_prints_and_we_get_stand_side_by_side(document: Document, paper_study: Study):
    rows = reproduction(paper_study)
    assert f"All {len(rows)} numbers" in document.text
    for words in ("Paper prints", "We get", "lower minimum", "without the copies", "data not given"):
        assert words in document.text
    assert headline(rows) in document.text
    assert headline(rows).startswith("All ")


def test_every_mistake_and_every_conclusion_is_there(document: Document):
    ids = {attributes["id"] for _, attributes in document.elements if "id" in attributes}
    mistakes = (
        "copies",
        "broadcast",
        "resampled",
        "variances",
        "contradiction",
        "bytes",
        "collinear",
        "offset",
    )
    assert {f"mistake-{key}" for key in mistakes} <= ids
    assert {f"table-erratum-{key}" for key in mistakes} <= ids
    assert len([name for name in ids if name.startswith("statement-of-")]) == 15
    for badge in ("Supported", "Supported in part", "Not rejected", "Not borne out", "Data not given"):
        assert badge in document.text


def test_one_h1_and_no_skipped_heading_level(document: Document):
    levels = [int(tag[1]) for tag, _ in document.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_same_study_same_bytes(study_page: str, paper_study: Study, provenance: Provenance):
    assert render(paper_study, provenance) == study_page


def test_the_least_that_can_be_given(paper_study: Study, provenance: Provenance):
    """Runs of one architecture at one context length and no measurements: sections say what they need."""
    runs = paper_study.runs.filter(
        (paper_study.runs["arch"] == "transformer") & (paper_study.runs["context_length"] == 2048)
    )
    few = make_study(runs, paper_study.inference.head(0), StudySettings(resamples=20), fits={})
    text = Document(render(few, provenance)).text
    assert "Needs the token/parameter runs of both architectures." in text
    assert "Needs the measurements of inference." in text
    assert not any("differs" in row.standing for row in reproduction(few))


def test_summary_is_a_line_a_conclusion(paper_study: Study):
    lines = summary(paper_study)
    assert len(lines) == 16
    assert "supported: At equal compute the compute-optimal xLSTM is larger" in lines[1]


def test_every_figure_as_pdf(paper_study: Study, provenance: Provenance, tmp_path: Path):
    drawn = [figure for part in draw(paper_study, provenance).values() for figure in part]
    keys = {"isoflop-8192", "power-laws-2048", "gaps", "contexts", "frontier", "overtraining", "offsets"}
    assert keys <= {figure.key for figure in drawn}
    for figure in drawn:
        if figure.key in ("isoflop-2048", "frontier", "offsets", "runtime-errors"):
            content = save_pdf(figure, tmp_path / f"{figure.key}.pdf").read_bytes()
            assert content.startswith(b"%PDF")
            assert len(content) > 5000


def test_equal_figures_give_equal_pdf(paper_study: Study, provenance: Provenance, tmp_path: Path):
    (figure,) = draw(paper_study, provenance)["gaps"]
    one, two = (save_pdf(figure, tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf"))
    assert one == two


def test_a_mark_without_counterpart_is_refused(tmp_path: Path):
    chart = alt.Chart(alt.InlineData(values=[{"x": 1.0, "y": 2.0}])).mark_arc().encode(x="x:Q", y="y:Q")
    figure = Figure(key="k", caption="c", panels=(Panel(title="t", chart=chart),))
    with pytest.raises(ValueError, match="a arc mark has no counterpart"):
        save_pdf(figure, tmp_path / "k.pdf")
    assert not (tmp_path / "k.pdf").exists()


def test_provenance_is_told(paper_study: Study, provenance: Provenance):
    text = Document(render(paper_study, replace(provenance, git_revision="abc123"))).text
    assert "abc123" in text
    assert "isoflop report paper" in text
    assert "489 finished runs" in text
