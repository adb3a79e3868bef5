"""axe-core finds nothing serious, in light and dark, wide and on a phone."""

import pytest

from tests.browser.conftest import Open

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make setup")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_no_serious_violation(open_page: Open, html: str, scheme: str, width: int):
    opened = open_page(html, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    opened.page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    found = axe.Axe().run(opened.page).response["violations"]
    serious = [
        (rule["id"], rule["impact"], [node["html"][:160] for node in rule["nodes"][:3]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []
