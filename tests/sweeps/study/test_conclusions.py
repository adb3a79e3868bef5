"""How the paper's conclusions stand on its data, and that a verdict follows its evidence."""

from dataclasses import replace

import pytest

from sweeps.laws import Estimate
from sweeps.study import Study
from sweeps.study.conclusions import conclusions
from sweeps.study.errata import errata
from sweeps.study.statements import Evidence, verdict_of


def test_standing_of_every_statement(paper_study: Study):
    found = {statement.key: statement.verdict for statement in conclusions(paper_study)}
    assert found.pop("xlstm-constant") in ("partly", "consistent")  # one interval ends near 0
    assert found == {
        "larger": "supported",
        "larger-with-context": "supported",
        "transformer-shrinks": "supported",
        "lower-loss": "supported",
        "gap-with-context": "supported",
        "pareto": "partly",
        "constant-ratio": "supported",
        "one-slope": "consistent",
        "slopes-differ": "contradicted",
        "extrapolates": "contradicted",
        "offset": "contradicted",
        "ttft": "supported",
        "step-time": "supported",
        "batch": "absent",
    }


def test_a_gap_that_holds_zero_decides_nothing(paper_study: Study):
    wide = [replace(gap, N_ratio=Estimate(value=1.1, low=0.9, high=1.3)) for gap in paper_study.gaps]
    undecided = conclusions(replace(paper_study, gaps=tuple(wide)))[0]
    assert (undecided.key, undecided.verdict) == ("larger", "undecided")
    mixed = conclusions(replace(paper_study, gaps=(*wide, paper_study.gaps[0])))[0]
    assert mixed.verdict == "partly"


@pytest.mark.parametrize(
    ("bears_out", "verdict"),
    [([], "absent"), ([True], "supported"), ([True, False], "partly"), ([False], "undecided")],
)
def test_verdict_follows_evidence(bears_out: list[bool], verdict: str):
    value = Estimate(value=1.0)
    assert (
        verdict_of([Evidence(what="w", value=value, form="ratio", bears_out=b) for b in bears_out]) == verdict
    )


def test_every_mistake_has_its_numbers(paper_study: Study):
    found = {mistake.key: mistake for mistake in errata(paper_study)}
    assert len(found) == 8
    assert all(mistake.rows for mistake in found.values())
    stored = found["broadcast"].rows[0]
    assert (stored.published, stored.repeated) == (pytest.approx(0.18397), pytest.approx(0.18397, abs=1e-5))
    assert stored.ours.value == pytest.approx(1.2475e-4, rel=1e-3)
    offsets = {row.what: row.ours for row in found["offset"].rows}
    one, two = (offsets[f"E, Transformer, with gamma, {name} runs"] for name in ("tokenparam", "isoflop"))
    assert one.high < two.low
