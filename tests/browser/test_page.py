"""What a reader does with a report: point, switch, sort, save, print, on a desk and on a phone."""

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.browser.conftest import Open, Opened


def test_nothing_is_asked_of_any_network(whole: Opened):
    own = [url for url in whole.requests if not url.startswith(("blob:", "data:"))]
    assert own == [whole.url]


def test_every_chart_is_drawn(whole: Opened):
    charts = whole.page.locator(".chart")
    assert charts.count() > 20
    assert whole.page.locator(".chart svg").count() == charts.count()


def test_pointing_at_a_mark_names_its_run(whole: Opened):
    whole.page.locator("#isoflop-128-0 .mark-symbol path").first.hover(force=True)
    said = whole.page.locator("#vg-tooltip-element").inner_text()
    assert re.search(r"transformer-\d+k-\de\+1\d-T128", said)
    assert "loss" in said


def test_a_click_on_a_mark_opens_the_run_in_mlflow(open_page: Open, html: str):
    page = open_page(html).page
    page.evaluate("""EventTarget.prototype.dispatchEvent = function () {
      if (this.tagName === "A") window.followed = [this.href, this.target];
      return true;
    }""")
    page.locator("#isoflop-128-0 .mark-symbol path").first.click(force=True)
    page.wait_for_function("window.followed")
    link, target = page.evaluate("window.followed")
    assert target == "_blank"
    links = page.locator("#table-runs a").evaluate_all("links => links.map((link) => link.href)")
    assert link in links
    assert link.startswith("http://127.0.0.1:5000/#/experiments/1/runs/")


def test_an_architecture_switched_off_is_nowhere(open_page: Open, html: str):
    opened = open_page(html)
    page = opened.page
    marks = page.locator(
        "#power-laws-128-0 [fill='var(--arch-1)'], #power-laws-128-0 [stroke='var(--arch-1)']"
    )
    rows = page.locator("#table-parabolas tr[data-arch='mlstm']")
    panel = page.locator("#isoflop-128-1")
    assert marks.count()
    assert rows.count()
    box = page.get_by_label("mLSTM", exact=True)
    box.uncheck()
    assert not any(mark.is_visible() for mark in marks.all())
    assert not any(row.is_visible() for row in rows.all())
    assert not panel.is_visible()
    assert page.locator("#isoflop-128-0").is_visible()
    assert not page.locator("#what-if .card[data-arch='mlstm']").is_visible()
    box.check()
    assert panel.is_visible()
    assert all(row.is_visible() for row in rows.all())


def test_a_context_switched_off_is_nowhere(open_page: Open, html: str):
    page = open_page(html).page
    page.locator(".choices input[data-key='128']").uncheck()
    assert not page.locator("#figure-isoflop-128").is_visible()
    assert page.locator("#figure-isoflop-512").is_visible()
    shown = page.locator("#table-runs tbody tr:visible")
    assert 0 < shown.count() < page.locator("#table-runs tbody tr").count()


def test_tables_sort_by_value_and_not_by_text(whole: Opened):
    heading = whole.page.locator("#table-runs th", has_text="Loss").get_by_role("button")
    place = whole.page.locator("#table-runs th").all_inner_texts().index("Loss")
    for order, direction in ((1, "ascending"), (-1, "descending")):
        heading.click()
        read = "(rows, i) => rows.map(r => Number(r.cells[i].dataset.v ?? r.cells[i].textContent))"
        losses = whole.page.locator("#table-runs tbody tr").evaluate_all(read, place)
        assert losses == sorted(losses, reverse=order < 0)
        assert heading.locator("..").get_attribute("aria-sort") == direction


def test_sorting_by_keyboard(whole: Opened):
    button = whole.page.locator("#table-parabolas th").first.get_by_role("button")
    button.focus()
    whole.page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "ascending"


def saved(opened: Opened, button: str, tmp_path: Path) -> str:
    with opened.page.expect_download() as download:
        opened.page.locator(button).click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path.read_text(encoding="utf-8")


def test_a_table_as_csv_has_every_digit(whole: Opened, tmp_path: Path, table):
    text = saved(whole, "button[data-do='csv'][data-table='table-runs']", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == table.height
    assert sorted(float(row["Loss"]) for row in rows) == sorted(table["loss"].to_list())
    assert {row["Run"] for row in rows} == set(table["run_name"])


def test_a_figure_as_csv_has_its_points(whole: Opened, tmp_path: Path, table):
    text = saved(whole, "#figure-isoflop-128 button[data-save='csv']", tmp_path)
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["mark"] == "point" and row["run"]]
    own = table.filter(table["context_length"] == 128)
    assert {row["run"] for row in rows} == set(own["run_name"])
    assert len(rows) == own.height


def test_a_figure_as_svg_stands_alone(whole: Opened, tmp_path: Path):
    text = saved(whole, "#figure-power-laws-128 button[data-save='svg']", tmp_path)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall("{http://www.w3.org/2000/svg}svg")) == 3
    assert "var(--" not in text
    assert "Best size N*" in text


def test_numbers_are_copied_with_every_digit(open_page: Open, html: str, fitted):
    opened = open_page(html)
    opened.page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    opened.page.locator("button[data-do='copy'][data-table='table-law-parameters']").click()
    copied = opened.page.evaluate("window.copied").splitlines()
    first = next(g for g in fitted.groups if (g.arch, g.context_length) == ("transformer", 128))
    assert copied[0].split("\t")[:2] == ["Architecture", "Context"]
    assert repr(first.parametric[0].params["A"].value) in copied[1].split("\t")
    opened.page.locator("#what-if .card[data-arch='mlstm']").get_by_role("button").click()
    assert opened.page.evaluate("window.copied").startswith("quantity\tvalue\tlow\thigh\nN*\t")


def paper(opened: Opened) -> str:
    return opened.page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark_by_the_system_and_by_choice(open_page: Open, html: str):
    dark, light = open_page(html, color_scheme="dark"), open_page(html, color_scheme="light")
    assert paper(dark) != paper(light)
    light.page.get_by_label("Dark").check()
    assert paper(light) == paper(dark)
    dark.page.get_by_label("Light").check()
    assert paper(dark) != paper(light)


def test_print_to_pdf(whole: Opened):
    pdf = whole.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 60


def test_one_figure_prints_alone(open_page: Open, html: str):
    page = open_page(html).page
    page.evaluate("window.print = () => { window.printed = true; }")
    page.locator("#figure-isoflop-128 button[data-save='pdf']").click()
    assert page.evaluate("window.printed")
    page.emulate_media(media="print")
    assert page.locator("#isoflop-128-0 svg").is_visible()
    assert not page.locator("h1").is_visible()
    assert not page.locator("#power-laws-128-0").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("h1").is_visible()


def test_paper_shows_what_is_folded(open_page: Open, html: str):
    page = open_page(html).page
    folded = page.locator("details:not([open])")
    assert folded.count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.count()


@pytest.mark.parametrize("width", [360, 768])
def test_no_sideways_scrolling(open_page: Open, html: str, width: int):
    page = open_page(html, viewport={"width": width, "height": 700}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth + 1).length"
    assert page.locator(".chart svg, .card, .field").evaluate_all(wide) == 0


def test_the_first_stop_of_the_keyboard_skips_to_the_answer(open_page: Open, html: str):
    page = open_page(html).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#answer")
