"""When a sweep will be done."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.forecast import makespan, pace


@dataclass(frozen=True)
class Run:
    arch: str
    estimated_s: float


def test_the_pace_is_each_architectures_own() -> None:
    mlstm, transformer = Run("mlstm", 10.0), Run("transformer", 20.0)
    here = pace([(mlstm, 30.0), (mlstm, 30.0), (mlstm, 900.0), (transformer, 10.0)])
    assert here.seconds(mlstm) == 30.0
    assert here.seconds(transformer) == 10.0
    assert here.seconds(Run("slstm", 1.0)) == here.overall == 3.0
    assert pace([]).seconds(mlstm) == 10.0
    assert pace([]).overall is None


@pytest.mark.parametrize(
    ("busy", "queued", "slots", "expected"),
    [
        ([], [], 2, 0.0),
        ([5.0], [], 2, 5.0),
        ([], [4.0, 3.0, 2.0, 1.0], 2, 5.0),  # 4 + 1 and 3 + 2
        ([10.0], [4.0, 4.0], 2, 10.0),
        ([1.0, 2.0], [10.0], 2, 11.0),
        ([], [7.0], 1, 7.0),
    ],
)
def test_known_schedules(busy: list[float], queued: list[float], slots: int, expected: float) -> None:
    assert makespan(busy, queued, slots) == pytest.approx(expected)


times = st.lists(st.floats(0.1, 100), max_size=12)


@given(times, times, st.integers(1, 5))
def test_a_schedule_is_no_shorter_than_its_work_and_no_longer_than_list_scheduling_allows(
    busy: list[float], queued: list[float], slots: int
) -> None:
    """Graham (1966): within work / slots + the longest run."""
    busy = busy[:slots]
    found = makespan(busy, queued, slots)
    longest = max([*busy, *queued], default=0.0)
    even = sum([*busy, *queued]) / slots
    assert max(longest, even) - 1e-6 <= found <= even + longest + 1e-6
