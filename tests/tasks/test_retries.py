"""Rules for failed trainings."""

import pytest

from tasks.retries import PAUSES_S, next_attempt
from xlstm.training.failures import Failure


@pytest.mark.parametrize("failure", [Failure.DIVERGED, Failure.ERROR, Failure.TIME_LIMIT])
def test_what_would_only_come_again_is_not_tried_again(failure: Failure) -> None:
    assert next_attempt([failure], 8, None) is None
    assert next_attempt([Failure.CRASHED, failure], 8, None) is None


def test_memory_halves_the_micro_batch_down_to_one_sequence() -> None:
    sizes, failures, size = [], [], None
    while (retry := next_attempt([*failures, Failure.OUT_OF_GPU_MEMORY], 13, size)) is not None:
        failures.append(Failure.OUT_OF_GPU_MEMORY)
        size = retry.micro_batch
        sizes.append(size)
        assert retry.pause_s == 0
    assert sizes == [7, 4, 2, 1]


@pytest.mark.parametrize("failure", [Failure.CRASHED, Failure.KILLED, Failure.HUNG, Failure.STOPPED])
def test_a_crash_is_resumed_at_once_a_limited_number_of_times(failure: Failure) -> None:
    retries = [next_attempt([failure] * count, 8, 4) for count in range(1, 5)]
    assert [retry and (retry.pause_s, retry.micro_batch) for retry in retries] == [(0, 4)] * 3 + [None]


@pytest.mark.parametrize("failure", [Failure.DISK_FULL, Failure.DATABASE_LOST])
def test_trouble_of_the_machine_is_waited_for(failure: Failure) -> None:
    pauses = [next_attempt([failure] * count, 8, None) for count in range(1, 5)]
    assert [retry and retry.pause_s for retry in pauses] == [*PAUSES_S, None]


def test_want_of_memory_does_not_use_up_the_attempts_after_crashes() -> None:
    failures = [Failure.OUT_OF_MEMORY] * 5 + [Failure.CRASHED]
    assert next_attempt(failures, 64, 2) is not None


def test_every_kind_of_failure_has_a_rule() -> None:
    for failure in Failure:
        next_attempt([failure], 8, None)
