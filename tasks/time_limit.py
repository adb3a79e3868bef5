"""A limit on the time of a flow: what may still start, and when what runs is to leave a checkpoint."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sweeps.plan import PlannedRun
from tasks.forecast import Pace


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """Trainings pause at `until`. One that would be cut in two, though a whole limit has room for it, waits
    for the next flow: a checkpoint that is never written need not be carried from machine to machine."""

    length_s: float
    until: float
    """Seconds since the epoch."""
    pace: Callable[[], Pace]
    """How long runs take here, as far as it is known by now."""
    clock: Callable[[], float] = field(default=time.time)

    def refusal(self, run: PlannedRun, *, begun: bool) -> str | None:
        """Why a run is not to start now; None where it is. `begun`: it has a checkpoint already."""
        left_s = self.until - self.clock()
        if left_s <= 0:
            return "paused: the sweep's time was up before it could start"
        needed_s = self.pace().seconds(run)
        if begun or needed_s <= left_s or needed_s > self.length_s:
            return None
        return (
            f"paused: it takes about {needed_s:.0f} s, of which the sweep's time limit leaves {left_s:.0f};"
            " not started"
        )
