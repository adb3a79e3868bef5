"""What is done about a failed training: a rule for each kind of failure, and a limit."""

from collections.abc import Sequence
from dataclasses import dataclass

from xlstm.training.failures import Failure

RESUMED = frozenset({Failure.CRASHED, Failure.KILLED, Failure.HUNG, Failure.STOPPED})
"""The next attempt goes on from the last checkpoint, or from step 0 where there is none yet."""
WAITED_FOR = frozenset({Failure.DISK_FULL, Failure.DATABASE_LOST})
"""The machine's trouble and not the run's: the next attempt waits for it to pass."""
SMALLER = frozenset({Failure.OUT_OF_MEMORY, Failure.OUT_OF_GPU_MEMORY})
"""The next attempt takes half the sequences at once."""
PAUSES_S = (2.0, 15.0, 60.0)
"""Before each further attempt of a run that waits for its machine; their number limits every rule."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How the next attempt differs."""

    pause_s: float = 0.0
    micro_batch: int | None = None
    reason: str = ""
    """For the display, a few words."""


def next_attempt(failures: Sequence[Failure], batch_size: int, micro_batch: int | None) -> Retry | None:
    """The rule for the last of a run's failures in this flow; None where another attempt would not help.

    A run that diverged diverges again, an error is met again, and time that was used up is used up again:
    none of these is retried. `batch_size` and `micro_batch` (None: the whole batch) are in sequences, of each
    of the run's processes.
    """
    failure = failures[-1]
    if failure in SMALLER:
        size = micro_batch or batch_size
        if size == 1:
            return None
        return Retry(micro_batch=(size + 1) // 2, reason=f"{failure}, micro-batch {(size + 1) // 2}")
    earlier = sum(past not in SMALLER for past in failures) - 1
    if earlier >= len(PAUSES_S):
        return None
    if failure in RESUMED:
        return Retry(micro_batch=micro_batch, reason=failure)
    if failure in WAITED_FOR:
        return Retry(pause_s=PAUSES_S[earlier], micro_batch=micro_batch, reason=failure)
    return None
