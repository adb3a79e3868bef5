"""Pictures of a report's main views, light and dark, wide and on a phone, to be looked at.

python -m tests.browser.screenshots report.html docs/images
"""

import shutil
import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import FLAGS

SIZES = {"wide": (1280, 860), "phone": (390, 844)}
VIEWS = ("answer", "what-if", "isoflop", "laws", "surface", "costs")
ON_A_PHONE = ("answer", "what-if", "laws")


def take(report: Path, folder: Path) -> None:
    """Write `VIEW-SIZE-SCHEME.png` for every view, size and scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for (size, (width, height)), scheme in product(SIZES.items(), ("light", "dark")):
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
            )
            page.goto(report.resolve().as_uri())
            page.wait_for_selector("html[data-drawn='yes']")
            for view in ON_A_PHONE if size == "phone" else VIEWS:
                _shot(page, view, folder / f"{view}-{size}-{scheme}.png")
        browser.close()


def _shot(page: Page, view: str, path: Path) -> None:
    if view == "answer":
        page.evaluate("scrollTo(0, 0)")
    else:
        page.evaluate("id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", view)
    page.wait_for_timeout(200)
    page.screenshot(path=path)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
