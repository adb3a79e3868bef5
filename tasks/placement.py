"""Which waiting runs start now, and on which GPUs: a pure function of who runs, who waits, and the machine.

First come, first served, and meanwhile no idle device: a run may pass those who asked before where it delays
none of them (EASY backfilling, Lifka 1995). When the first in the queue can start is told from the expected
ends of what runs. Runs that take longer than expected are taken to end at any moment, and then nothing passes
who would need their room, so a wrong guess idles a device for a while and starves nobody. So does an unknown
one, which is the default.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tasks.devices import Machine, Need

EPSILON = 1e-6
"""Shares of a GPU are sums of floats."""
SECOND = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that waits or runs."""

    since: int
    """When it asked, nanoseconds since the epoch."""
    need: Need
    granted: bool = False
    started: int = 0
    """When it was granted, nanoseconds since the epoch."""
    gpus: tuple[str, ...] = ()
    """UUIDs of its GPUs, once granted."""


def placed(mine: Entry, others: Sequence[Entry], machine: Machine, now: int) -> Entry | None:
    """A waiting run granted, or None while it has to wait."""
    return next((entry for entry in starts([mine, *others], machine, now) if entry.since == mine.since), None)


def starts(entries: Sequence[Entry], machine: Machine, now: int) -> list[Entry]:
    """The waiting runs that start now, granted, in the order of their asking."""
    busy = [entry for entry in entries if entry.granted]
    started: list[Entry] = []
    kept: list[Entry] = []  # those who wait on, and whom nobody may delay
    for entry in sorted((e for e in entries if not e.granted), key=lambda entry: entry.since):
        for option in _options(entry, busy, machine, now):
            if not any(_delays(option, first, busy, machine, now) for first in kept):
                busy.append(option)
                started.append(option)
                break
        else:
            if not any(first.need.device == entry.need.device for first in kept):
                kept.append(entry)
    return started


def _options(entry: Entry, busy: Sequence[Entry], machine: Machine, now: int) -> Iterator[Entry]:
    """The ways in which a run fits beside those that run, the emptiest GPUs first."""
    need = entry.need
    if machine.threads < need.threads + sum(other.need.threads for other in busy):
        return
    if machine.memory_bytes < need.memory_bytes + sum(other.need.memory_bytes for other in busy):
        return
    granted = replace(entry, granted=True, started=now)
    if need.device == "cpu":
        yield granted
        return
    free: list[tuple[float, int, str]] = []
    for position, gpu in enumerate(machine.gpus):
        there = [other.need for other in busy if gpu.uuid in other.gpus]
        share = sum(other.gpu_share for other in there)
        memory = sum(other.gpu_bytes for other in there)
        if share + need.gpu_share <= 1 + EPSILON and (
            memory + need.gpu_bytes <= gpu.memory_bytes or not there
        ):
            free.append((share, position, gpu.uuid))
    uuids = [uuid for *_, uuid in sorted(free)]
    if need.devices > 1:
        if len(uuids) >= need.devices:
            yield replace(granted, gpus=tuple(uuids[: need.devices]))
        return
    for uuid in uuids:
        yield replace(granted, gpus=(uuid,))


def _delays(option: Entry, first: Entry, busy: Sequence[Entry], machine: Machine, now: int) -> bool:
    """Whether a run that started now would keep `first` waiting for longer."""
    ends = [(_end(entry, now), entry) for entry in busy]
    seconds = option.need.expected_s
    mine = math.inf if seconds is None else now + seconds * SECOND
    before = _earliest(first, ends, machine, now)
    return _earliest(first, [*ends, (mine, option)], machine, now) > before


def _end(entry: Entry, now: int) -> float:
    return max(now, entry.started + (entry.need.expected_s or 0.0) * SECOND)


def _earliest(first: Entry, ends: Sequence[tuple[float, Entry]], machine: Machine, now: int) -> float:
    """When a run fits, as those that run end one after the other."""
    left = sorted(ends, key=lambda pair: pair[0])
    at: float = now
    while True:
        if any(True for _ in _options(first, [entry for _, entry in left], machine, now)):
            return at
        if not left:
            return math.inf
        at, _ = left.pop(0)
