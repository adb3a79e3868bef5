"""What may start under a limit, and a sweep that is cut and goes on."""

from types import SimpleNamespace

import pytest

from tasks.forecast import Pace
from tasks.time_limit import TimeLimit


def limit(now: float, *, ratio: float = 1.0) -> TimeLimit:
    pace = Pace(ratios={}, overall=ratio)
    return TimeLimit(length_s=100.0, until=1000.0, pace=lambda: pace, clock=lambda: now)


def run(seconds: float) -> SimpleNamespace:
    return SimpleNamespace(arch="mlstm", estimated_s=seconds)


def test_a_run_starts_where_it_ends_in_time() -> None:
    assert limit(950).refusal(run(50), begun=False) is None
    refusal = limit(950).refusal(run(51), begun=False)
    assert refusal == "paused: it takes about 51 s, of which the sweep's time limit leaves 50; not started"


def test_the_estimate_follows_the_pace() -> None:
    assert limit(950, ratio=0.5).refusal(run(100), begun=False) is None
    assert limit(950, ratio=2.0).refusal(run(26), begun=False) is not None


def test_a_run_longer_than_any_limit_starts_and_is_cut() -> None:
    assert limit(950).refusal(run(101), begun=False) is None


def test_a_run_with_a_checkpoint_goes_on() -> None:
    assert limit(950).refusal(run(90), begun=True) is None


@pytest.mark.parametrize("begun", [True, False])
def test_nothing_starts_when_the_time_is_up(begun: bool) -> None:
    assert "time was up" in str(limit(1000).refusal(run(1), begun=begun))
