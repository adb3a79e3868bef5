"""When a sweep will be done: the plan's estimates, corrected by what its finished runs really took."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol


class Timed(Protocol):
    """A run with the plan's estimate."""

    @property
    def arch(self) -> str: ...
    @property
    def estimated_s(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much longer than estimated runs take here, by architecture."""

    ratios: Mapping[str, float]
    overall: float | None
    """Over all architectures; None before anything was measured."""

    def seconds(self, run: Timed) -> float:
        """What a run will take; its estimate where nothing was measured yet."""
        return run.estimated_s * self.ratios.get(run.arch, self.overall or 1.0)


def pace(measured: Iterable[tuple[Timed, float]]) -> Pace:
    """From runs and the seconds that they took. Medians, since first runs wait for imports."""
    by_arch: dict[str, list[float]] = {}
    for run, seconds in measured:
        by_arch.setdefault(run.arch, []).append(seconds / run.estimated_s)
    everything = [ratio for ratios in by_arch.values() for ratio in ratios]
    return Pace(
        ratios={arch: median(ratios) for arch, ratios in by_arch.items()},
        overall=median(everything) if everything else None,
    )


def makespan(busy_s: Sequence[float], queued_s: Sequence[float], slots: int) -> float:
    """Seconds until the last run ends: queued runs start in their order, each where room comes first.

    `busy_s`: what is left of the runs under way, one a slot.
    """
    ends = sorted(busy_s, reverse=True)[:slots] + [0.0] * (slots - len(busy_s))
    heapq.heapify(ends)
    for seconds in queued_s:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
