"""Who starts when: nothing is handed out twice, nobody starves, and no device idles while a run fits."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.devices import Gpu, Machine, Need
from tasks.placement import SECOND, Entry, placed, starts

GIB = 2**30
MACHINE = Machine(
    threads=16,
    memory_bytes=64 * GIB,
    gpus=tuple(Gpu(name="H", uuid=f"GPU-{k}", memory_bytes=10 * GIB) for k in range(4)),
)


def gpu(
    share: float = 1.0, devices: int = 1, gib: float = 1.0, expected_s: float | None = None, threads: int = 1
) -> Need:
    return Need(
        device="cuda",
        threads=threads,
        memory_bytes=GIB,
        gpu_share=1.0 if devices > 1 else share,
        gpu_bytes=int(gib * GIB),
        devices=devices,
        expected_s=expected_s,
    )


def cpu(threads: int = 1, gib: float = 1.0, expected_s: float | None = None) -> Need:
    return Need(device="cpu", threads=threads, memory_bytes=int(gib * GIB), expected_s=expected_s)


@dataclass
class Simulation:
    """A machine that hands out room to runs as they ask for it and end, and what was seen."""

    machine: Machine
    asked: Sequence[tuple[Need, float, float]]
    """Need, seconds that it takes in truth, when it asks."""
    begun: dict[int, float] = field(default_factory=dict)
    """Second of its start, by position."""
    promised: dict[int, float] = field(default_factory=dict)
    """Second at which the first of the queue would start at the latest, if what runs ends as expected."""

    def run(self) -> "Simulation":
        entries: dict[int, Entry] = {}
        events = [(arrival, 1, i) for i, (*_, arrival) in enumerate(self.asked)]
        heapq.heapify(events)
        while events:
            now, kind, i = heapq.heappop(events)
            if kind == 1:
                entries[i] = Entry(since=i, need=self.asked[i][0])
            else:
                del entries[i]
            if events and events[0][0] == now:
                continue
            for entry in starts(list(entries.values()), self.machine, int(now * SECOND)):
                entries[entry.since] = entry
                self.begun[entry.since] = now
                heapq.heappush(events, (now + self.asked[entry.since][1], 0, entry.since))
            self.check(list(entries.values()), now)
        return self

    def check(self, entries: Sequence[Entry], now: float) -> None:
        busy = [entry for entry in entries if entry.granted]
        assert sum(entry.need.threads for entry in busy) <= self.machine.threads
        assert sum(entry.need.memory_bytes for entry in busy) <= self.machine.memory_bytes
        for device in self.machine.gpus:
            there = [entry.need for entry in busy if device.uuid in entry.gpus]
            assert sum(need.gpu_share for need in there) <= 1 + 1e-5
            assert len(there) == 1 or sum(need.gpu_bytes for need in there) <= device.memory_bytes
        for entry in busy:
            wanted = entry.need.devices if entry.need.device == "cuda" else 0
            assert len(set(entry.gpus)) == len(entry.gpus) == wanted
        waiting = sorted((e for e in entries if not e.granted), key=lambda entry: entry.since)
        if waiting:  # the first of all waits for want of room alone
            first = waiting[0]
            assert not self.fits(first.need, busy)
            self.promised.setdefault(first.since, self.latest(first.need, busy, now))

    def fits(self, need: Need, busy: Sequence[Entry]) -> bool:
        if self.machine.threads - sum(entry.need.threads for entry in busy) < need.threads:
            return False
        if self.machine.memory_bytes - sum(entry.need.memory_bytes for entry in busy) < need.memory_bytes:
            return False
        if need.device == "cpu":
            return True
        free = 0
        for device in self.machine.gpus:
            there = [entry.need for entry in busy if device.uuid in entry.gpus]
            memory = sum(n.gpu_bytes for n in there) + need.gpu_bytes
            share = sum(n.gpu_share for n in there) + need.gpu_share
            free += share <= 1 + 1e-6 and (not there or memory <= device.memory_bytes)
        return free >= need.devices

    def latest(self, need: Need, busy: Sequence[Entry], now: float) -> float:
        left = sorted(busy, key=lambda e: e.started / SECOND + (e.need.expected_s or math.inf))
        while left:
            gone = left.pop(0)
            if self.fits(need, left):
                return max(now, gone.started / SECOND + (gone.need.expected_s or math.inf))
        return math.inf


needs = st.one_of(
    st.builds(cpu, st.integers(1, 16), st.floats(0.1, 64)),
    st.builds(gpu, st.floats(0.05, 1), st.just(1), st.floats(0.1, 20), threads=st.integers(1, 8)),
    st.builds(gpu, st.just(1.0), st.integers(2, 4), st.floats(0.1, 20), threads=st.integers(1, 16)),
)
whole_seconds = st.integers(1, 100).map(float)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(needs, whole_seconds, whole_seconds, st.none() | whole_seconds), max_size=10))
def test_everything_runs_once_and_fits_whatever_was_expected(
    runs: list[tuple[Need, float, float, float | None]],
) -> None:
    asked = [
        (Need(**{**need.__dict__, "expected_s": expected}), seconds, arrival)
        for need, seconds, arrival, expected in runs
    ]
    asked.sort(key=lambda run: run[2])
    assert Simulation(MACHINE, asked).run().begun.keys() == set(range(len(asked)))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(needs, whole_seconds, whole_seconds), max_size=10))
def test_who_is_first_is_never_delayed_where_expectations_hold(runs: list[tuple[Need, float, float]]) -> None:
    asked = [
        (Need(**{**need.__dict__, "expected_s": seconds}), seconds, arrival)
        for need, seconds, arrival in sorted(runs, key=lambda run: run[2])
    ]
    simulation = Simulation(MACHINE, asked).run()
    for i, latest in simulation.promised.items():
        assert simulation.begun[i] <= latest + 1e-6


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.tuples(whole_seconds, whole_seconds), min_size=1, max_size=30))
def test_no_gpu_idles_while_a_run_for_one_waits(runs: list[tuple[float, float]]) -> None:
    """Independent: with equal needs, list scheduling in the order of asking is what must come out."""
    asked = sorted(((gpu(), seconds, arrival) for seconds, arrival in runs), key=lambda run: run[2])
    begun = Simulation(MACHINE, asked).run().begun
    free = [0.0] * len(MACHINE.gpus)
    for i, (_, seconds, arrival) in enumerate(asked):
        start = max(arrival, heapq.heappop(free))
        assert begun[i] == start
        heapq.heappush(free, start + seconds)


TWO = Machine(threads=16, memory_bytes=64 * GIB, gpus=MACHINE.gpus[:2])


def test_small_runs_use_what_a_large_one_waits_beside_and_do_not_delay_it() -> None:
    """A run holds a GPU for 100 s, the next needs both, and small ones of 30 s queue behind."""
    asked = [(gpu(expected_s=100), 100.0, 0.0), (gpu(devices=2, expected_s=50), 50.0, 0.0)]
    asked += [(gpu(expected_s=30), 30.0, 0.0)] * 6
    begun = Simulation(TWO, asked).run().begun
    assert [begun[i] for i in range(8)] == [0, 100, 0, 30, 60, 150, 150, 180]


def test_a_large_run_is_not_starved_by_small_ones_that_take_longer_than_they_say() -> None:
    asked = [(gpu(expected_s=100), 100.0, 0.0), (gpu(devices=2), 50.0, 0.0)]
    asked += [(gpu(expected_s=10), 30.0, float(i)) for i in range(40)]
    begun = Simulation(TWO, asked).run().begun
    assert begun[1] == 120  # four of them passed, the last of which began at 90 and said it would end at 100
    assert sum(start < begun[1] for start in begun.values()) == 5


def test_nobody_passes_where_nobody_knows_how_long_it_takes() -> None:
    busy = Entry(since=0, need=gpu(), granted=True, gpus=("GPU-0",))
    large = Entry(since=1, need=gpu(devices=2))
    small = Entry(since=2, need=gpu(0.1))
    assert placed(small, [busy, large], TWO, 0) is None
    known = Entry(since=2, need=gpu(0.1, expected_s=5.0))
    assert placed(known, [busy, large], TWO, 0) is None  # the run that is there may end at any moment
    expected = Entry(since=0, need=gpu(expected_s=9.0), granted=True, gpus=("GPU-0",))
    start = placed(known, [expected, large], TWO, 0)
    assert start is not None
    assert start.gpus == ("GPU-1",)


def test_a_small_run_takes_the_gpu_that_nobody_waits_for() -> None:
    """The emptier one is kept for the large run, the other has room for what is small."""
    asked = [
        Entry(since=0, need=gpu(0.5, expected_s=100), granted=True, gpus=("GPU-0",)),
        Entry(since=1, need=gpu(0.7, expected_s=20), granted=True, gpus=("GPU-1",)),
        Entry(since=2, need=gpu(1.0)),
    ]
    small = placed(Entry(since=3, need=gpu(0.3, expected_s=100)), asked, TWO, 0)
    assert small is not None
    assert small.gpus == ("GPU-0",)


def test_a_run_on_several_gpus_takes_the_free_ones() -> None:
    busy = [Entry(since=0, need=gpu(0.1), granted=True, gpus=("GPU-1",))]
    start = placed(Entry(since=1, need=gpu(devices=3)), busy, MACHINE, 7)
    assert start is not None
    assert (start.gpus, start.started) == (("GPU-0", "GPU-2", "GPU-3"), 7)
    assert placed(Entry(since=1, need=gpu(devices=4)), busy, MACHINE, 7) is None
