"""The page of two sweeps in a browser: sound, quiet, accessible, with hostile names too."""

import pytest

from reports.comparing import Sides, render
from sweeps.comparing import compare_sweeps
from sweeps.laws import LawSettings
from tests.browser.conftest import Open
from tests.sweeps.test_comparing import sweep

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make setup")


def test_the_comparison_page(open_page: Open):
    names = ("old", "<script>alert(1)</script>")
    found = compare_sweeps(sweep(1), sweep(2, factor=0.97), LawSettings(resamples=20), names=names)
    sides = Sides(made="today", facts=(("Tokenizer", "bytes", names[1]),), caution="Take care.")
    opened = open_page(render(found, sides), bypass_csp=True)
    assert opened.requests == [opened.url]
    assert opened.page.locator("h1").inner_text().startswith("<script>alert(1)</script> follows another law")
    assert opened.page.locator(".chart svg").count() == 2
    serious = [
        (rule["id"], [node["html"][:160] for node in rule["nodes"][:2]])
        for rule in axe.Axe().run(opened.page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []
