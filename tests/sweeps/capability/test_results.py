"""Intervals against textbook values, the choice of rates, and verdicts on results made to order."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sweeps.capability.claims import (
    LOSS_MARGIN,
    Comparison,
    claims,
    gap_beyond,
    judge,
    measure_at,
    position_curve,
)
from sweeps.capability.results import Interval, Outcome, Results, interval, paired
from sweeps.capability.spec import CapabilitySpec, parse_suite
from sweeps.capability.text_tables import claim_table, level_table, text_table

ARCHS = ["lstm", "transformer", "xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]"]
RECIPE = {"steps": 10, "batch_size": 4, "peak_lr": 0.01}
TASKS: dict[str, dict[str, Any]] = {
    "parity": {"kind": "parity", "trained": 8, "measured": [8, 16, 32]},
    "search": {"kind": "search", "trained": 8, "measured": [8, 16]},
    "recall": {"kind": "recall", "trained": 8, "measured": [4, 8]},
    "text": {
        "kind": "text",
        "domains": ["python", "headers"],
        "max_bytes": 1000,
        "context_length": 8,
        "times": 8,
    },
}


def suite(*names: str, archs: list[str] | None = None) -> CapabilitySpec:
    entries = {
        name: {"task": TASKS[name], "size": {"parameters": 10_000}, "recipe": RECIPE}
        for name in names or TASKS
    }
    return parse_suite(
        {"name": "made", "archs": archs or ARCHS, "seeds": [0, 1, 2, 3], "experiments": entries}
    )


def outcome(experiment: str, arch: str, seed: int, measures: dict[str, float], **known: Any) -> Outcome:
    fields = {"peak_lr": 0.01, "N": 1000, "N_non_embedding": 900, "steps": 10, "tokens": 100}
    return Outcome(
        run_key=f"{experiment}-{arch}-{seed}-{known}",
        experiment=experiment,
        arch=arch,
        seed=seed,
        measures=measures,
        train_flops=1e6,
        **(fields | known),
    )


def results(
    experiment: str, measures: Callable[[str, float], dict[str, float]], archs: list[str] | None = None
) -> Results:
    """Four seeds an architecture, a little apart."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.004, (5, 4))
    return Results(
        outcomes=tuple(
            outcome(experiment, arch, seed, measures(arch, float(noise[ARCHS.index(arch), seed])))
            for arch in archs or ARCHS
            for seed in range(4)
        )
    )


def accuracies(values: dict[str, float], *levels: int) -> Callable[[str, float], dict[str, float]]:
    def made(arch: str, noise: float) -> dict[str, float]:
        value = min(1.0, values[arch] + noise)
        return {"loss": 1 - value, "accuracy": value} | {f"accuracy/{level}": value for level in levels}

    return made


def verdict(spec: CapabilitySpec, found: Results, key: str) -> str:
    return next(claim.verdict for claim in claims(spec, found) if claim.key == key)


def test_an_interval_is_students() -> None:
    values = [0.61, 0.72, 0.66, 0.79, 0.70]
    found = interval(values, 0.9)
    low, high = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_an_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(0.5, 0.1, (2000, 4))
    held = [i.low <= 0.5 <= i.high for i in (interval(list(row), 0.95) for row in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval_and_none_has_no_value() -> None:
    assert not interval([0.5], 0.95).is_known
    assert math.isnan(interval([], 0.95).value)


def test_accuracies_stay_possible() -> None:
    found = interval([1.0, 1.0, 0.8], 0.95, within=(0.0, 1.0))
    assert found.high == 1.0
    assert found.low < found.value < 1.0


def test_pairs_cancel_what_seeds_share() -> None:
    one, other = {0: 1.0, 1: 5.0, 2: 9.0}, {0: 0.9, 1: 4.9, 2: 8.9, 3: 7.0}
    found = paired(one, other, 0.95)
    assert found.seeds == 3
    assert (found.value, found.high - found.low) == pytest.approx((0.1, 0.0), abs=1e-9)


def test_the_best_rate_counts_by_what_was_held_out_and_not_by_what_is_measured() -> None:
    rows = [
        outcome("parity", "lstm", 0, {"loss": 0.1, "accuracy": 0.9, "accuracy/16": 0.1}, peak_lr=0.01),
        outcome("parity", "lstm", 0, {"loss": 0.5, "accuracy": 0.5, "accuracy/16": 0.9}, peak_lr=0.03),
    ]
    assert Results(outcomes=tuple(rows)).values("parity", "lstm", "accuracy/16") == {0: 0.1}


def test_a_rate_that_lost_a_seed_is_behind() -> None:
    measures = {"loss": 0.5, "accuracy": 0.5}
    rows = [
        outcome("parity", "lstm", 0, {"loss": 0.1, "accuracy": 0.9}, peak_lr=0.03),
        outcome("parity", "lstm", 1, {}, peak_lr=0.03, status="failed", error="diverged"),
        *(outcome("parity", "lstm", seed, measures, peak_lr=0.01) for seed in (0, 1)),
    ]
    assert {run.peak_lr for run in Results(outcomes=tuple(rows)).chosen("parity", "lstm").values()} == {0.01}


def test_text_is_chosen_by_loss() -> None:
    rows = [
        outcome("text", "lstm", 0, {"loss": 2.0, "accuracy": 0.9, "domain_loss/a": 2.0}, peak_lr=0.01),
        outcome("text", "lstm", 0, {"loss": 1.0, "accuracy": 0.1, "domain_loss/a": 1.0}, peak_lr=0.03),
    ]
    assert Results(outcomes=tuple(rows)).values("text", "lstm", "loss") == {0: 1.0}


def compared(low: float, high: float, unit: Any = "accuracy") -> Comparison:
    middle = Interval(value=(low + high) / 2, low=low, high=high, seeds=4)
    return Comparison(subject="a", other="b", what="", difference=middle, unit=unit)


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [
        (0.1, 0.3, "ahead"),
        (-0.3, -0.1, "behind"),
        (-0.01, 0.02, "equal"),
        (0.01, 0.02, "equal"),
        (-0.2, 0.3, "open"),
        (math.nan, math.nan, "open"),
    ],
)
def test_findings(low: float, high: float, finding: str) -> None:
    assert compared(low, high).finding == finding


def test_losses_have_a_margin_of_their_own() -> None:
    assert compared(LOSS_MARGIN, 0.04, "nats").finding == "ahead"
    assert compared(0.001, 0.5 * LOSS_MARGIN, "nats").finding == "equal"


AHEAD, BEHIND, EQUAL, OPEN = (compared(*ends) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.01, 0.01), (-1, 1)))


@pytest.mark.parametrize(
    ("comparisons", "masters", "expected"),
    [
        ((), True, "absent"),
        ((AHEAD, AHEAD), True, "holds"),
        ((AHEAD, AHEAD), False, "partly"),
        ((AHEAD, OPEN), True, "partly"),
        ((AHEAD, BEHIND), True, "partly"),
        ((OPEN, OPEN), True, "not resolved"),
        ((OPEN, EQUAL), True, "not resolved"),
        ((EQUAL, EQUAL), True, "does not hold"),
        ((BEHIND, OPEN), True, "does not hold"),
    ],
)
def test_judgements(comparisons: tuple[Comparison, ...], masters: bool, expected: str) -> None:
    assert judge(comparisons, masters) == expected


STATE = {"lstm": 0.99, "transformer": 0.5, "xlstm[1:0]": 0.52, "xlstm[0:1]": 0.98, "xlstm[1:1]": 0.95}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "holds"),
        ({"transformer": 0.98, "xlstm[1:0]": 0.98, "xlstm[1:1]": 0.98}, "does not hold"),
        ({"xlstm[0:1]": 0.6, "xlstm[1:1]": 0.6}, "partly"),  # ahead, and far from mastering it
        ({"xlstm[1:1]": 0.5}, "partly"),
    ],
)
def test_tracking_state(changed: dict[str, float], expected: str) -> None:
    found = results("parity", accuracies(STATE | changed, 8, 16, 32))
    assert verdict(suite("parity"), found, "tracks-state-parity") == expected


def test_a_spread_of_seeds_is_not_resolved() -> None:
    """Two of four seeds learn it: nobody can say."""

    rows = []
    for arch in ("transformer", "xlstm[1:0]", "xlstm[0:1]"):
        for seed in range(4):
            value = 1.0 if arch == "xlstm[0:1]" and seed < 2 else 0.5
            rows.append(outcome("parity", arch, seed, {"loss": 0.1, "accuracy": value, "accuracy/16": value}))
    found = Results(outcomes=tuple(rows))
    assert verdict(suite("parity"), found, "tracks-state-parity") == "not resolved"


def test_revising_and_recalling() -> None:
    revising = {"lstm": 0.4, "transformer": 0.9, "xlstm[1:0]": 0.9, "xlstm[0:1]": 0.95, "xlstm[1:1]": 0.97}
    found = results("search", accuracies(revising, 8, 16))
    assert verdict(suite("search"), found, "revises") == "holds"
    recalling = revising | {"xlstm[0:1]": 0.3, "lstm": 0.2}
    assert verdict(suite("recall"), results("recall", accuracies(recalling, 4, 8)), "recalls") == "holds"


def text_measures(gaps: dict[str, float]) -> Callable[[str, float], dict[str, float]]:
    """Loss 2 to position 8, then `gap` more."""

    def made(arch: str, noise: float) -> dict[str, float]:
        found = {"loss": 2.0 + noise, "accuracy": 0.3}
        found |= {f"domain_loss/{name}": 2.0 + gaps[arch] + noise for name in ("python", "headers")}
        ends = (1, 2, 4, 6, 8, 16, 32, 64)
        return found | {f"position_loss/{e}": 2.0 + noise + (gaps[arch] if e > 8 else 0.0) for e in ends}

    return made


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({"transformer": 0.9}, "holds"),
        ({"transformer": 0.9, "xlstm[1:0]": 0.3}, "partly"),  # rises less, and rises
        ({}, "does not hold"),
        ({"xlstm[1:0]": 0.5, "xlstm[0:1]": 0.5, "xlstm[1:1]": 0.5}, "does not hold"),
    ],
)
def test_extrapolating(gaps: dict[str, float], expected: str) -> None:
    found = results("text", text_measures({arch: gaps.get(arch, 0.0) for arch in ARCHS}))
    assert verdict(suite("text"), found, "extrapolates") == expected


def test_the_rise_is_weighted_by_positions() -> None:
    experiment = suite("text").experiments[0]
    measures = {"loss": 1.0, "accuracy": 0.1, "domain_loss/a": 1.0}
    measures |= {
        f"position_loss/{end}": loss for end, loss in ((4, 9.0), (6, 2.0), (8, 4.0), (16, 3.0), (64, 7.0))
    }
    found = Results(outcomes=(outcome("text", "lstm", 0, measures),))
    beyond = (8 * 3.0 + 48 * 7.0) / 56
    assert gap_beyond(experiment, found, "lstm") == {0: pytest.approx(beyond - 3.0)}
    assert position_curve(measures)[:2] == [(0, 4, 9.0), (4, 6, 2.0)]


def test_domains_are_compared_one_by_one() -> None:
    gaps = dict.fromkeys(ARCHS, 0.0) | {"transformer": 0.3}
    found = results("text", text_measures(gaps))
    claim = next(c for c in claims(suite("text"), found) if c.key == "domains")
    assert claim.verdict == "holds"
    assert {c.what for c in claim.comparisons} == {"python", "headers"}
    assert "ahead in 4 and behind in 0" in claim.comment


def test_what_was_not_trained_is_absent() -> None:
    found = Results(outcomes=(outcome("parity", "lstm", 0, {}, status="failed", error="out of memory"),))
    assert {claim.verdict for claim in claims(suite("parity"), found)} == {"absent"}


def test_levels_of_claims() -> None:
    task = suite("parity").experiments[0].task
    assert measure_at(task, beyond=False) == 8  # type: ignore[arg-type]
    assert measure_at(task, beyond=True) == 16  # type: ignore[arg-type]


def test_tables_say_what_was_measured() -> None:
    spec = suite("parity", "text")
    parity = results("parity", accuracies(STATE, 8, 16, 32))
    text = results("text", text_measures(dict.fromkeys(ARCHS, 0.0)))
    both = Results(outcomes=parity.outcomes + text.outcomes)
    shown = level_table(spec.experiments[0], both)
    assert "| chance |  |  |  | 0.50 | 0.50 | 0.50 |" in shown
    assert "16 (beyond)" in shown
    assert "| python | headers | rise beyond 8 |" in text_table(spec.experiments[1], both)
    assert "The sLSTM tracks state" in claim_table(claims(spec, both))
