"""Reports opened in Debian's Chromium, offline. `make browser` installs it where one is root."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from reports import render
from sweeps.laws import Analysis, LawSettings, analyse
from tests.browser import sweep

if TYPE_CHECKING:
    from playwright import sync_api

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs the browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Opened:
    """A page, and what it said and asked for since it was opened."""

    page: "sync_api.Page"
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def typed(self, **fields: str) -> None:
        """Fill the what-if form anew, and wait for the answer."""
        self.page.locator("#what-if form").evaluate("form => form.reset()")
        self.page.locator("#what-if details").evaluate("fold => { fold.open = true; }")
        for name, text in fields.items():
            place = self.page.locator(f"#what-if [name='{name.replace('_', '-')}']")
            if place.evaluate("e => e.tagName") == "SELECT":
                place.select_option(text)
            else:
                place.fill(text)
        self.page.wait_for_timeout(300)

    def answers(self, arch: str) -> dict[str, tuple[float, float, float]]:
        """Value, low and high of every number on an architecture's what-if card."""
        read = "nodes => nodes.map(n => [n.dataset.key, n.value, n.dataset.low ?? '', n.dataset.high ?? ''])"
        rows = self.page.locator(f"#what-if .card[data-arch='{arch}'] data").evaluate_all(read)
        return {key: tuple(float(v) if v else float("nan") for v in values) for key, *values in rows}


@pytest.fixture(scope="session")
def chromium() -> Iterator["sync_api.Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make setup")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: make browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


Open = Callable[..., Opened]


@pytest.fixture
def open_page(chromium: "sync_api.Browser", tmp_path: Path) -> Iterator[Open]:
    """Opens HTML as a file and waits until every chart is drawn; fails if a page complained."""
    yield from _opener(chromium, tmp_path)


@pytest.fixture(scope="module")
def whole(
    chromium: "sync_api.Browser", tmp_path_factory: pytest.TempPathFactory, html: str
) -> Iterator[Opened]:
    """The whole report, opened once for tests that leave no trace on each other."""
    opener = _opener(chromium, tmp_path_factory.mktemp("report"))
    yield next(opener)(html)
    for _ in opener:
        pass


def _opener(chromium: "sync_api.Browser", folder: Path) -> Iterator[Open]:
    contexts, everything = [], []

    def open_html(html: str, **options: object) -> Opened:
        path = folder / f"report-{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = chromium.new_context(offline=True, accept_downloads=True, **options)
        contexts.append(context)
        opened = Opened(context.new_page(), path.as_uri())
        everything.append(opened)
        opened.page.on("console", lambda said: _note(opened, said))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(opened.url)
        opened.page.wait_for_selector("html[data-drawn='yes']")
        return opened

    yield open_html
    for context in contexts:
        context.close()
    assert [complaint for opened in everything for complaint in opened.complaints] == []


def _note(opened: Opened, said: "sync_api.ConsoleMessage") -> None:
    if said.type in ("error", "warning"):
        opened.complaints.append(f"{said.type}: {said.text}")


@pytest.fixture(scope="session")
def table() -> pl.DataFrame:
    return sweep.run_table()


@pytest.fixture(scope="session")
def fitted(table: pl.DataFrame) -> Analysis:
    """What the library says of these runs: 200 resamples, one target beyond the grid."""
    return analyse(table, LawSettings(resamples=200, target_budgets=(1e13,)))


@pytest.fixture(scope="session")
def html(table: pl.DataFrame, fitted: Analysis) -> str:
    return render(table, fitted, sweep.provenance(), curves=sweep.curves(table))
