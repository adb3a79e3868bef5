"""Slots: how many, and one training on each."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sweeps.spec import Resources
from tasks.devices import Slot, SlotPool, SlotsClosed, cpu_count, gpu_names, slots
from tasks.errors import UserError
from tasks.state import State

no_gpu = pytest.mark.skipif(bool(gpu_names()), reason="says what happens without a GPU")


@no_gpu
def test_a_cpu_has_a_slot_for_every_set_of_threads() -> None:
    assert len(slots(Resources(threads=1))) == cpu_count()
    assert slots(Resources(threads=10_000)) == (Slot(device="cpu", index=0),)
    assert slots(Resources(runs_in_parallel=3))[-1] == Slot(device="cpu", index=2)


@no_gpu
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"resources\.device = cuda: no NVIDIA GPU is visible here"):
        slots(Resources(device="cuda"))


def test_gpus_can_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_names() == []


def test_a_slot_serves_one_thread_at_a_time(state: State) -> None:
    pool = SlotPool(state, [Slot(device="cpu", index=k) for k in range(2)])
    guard, at_work, most = threading.Lock(), [], [0]

    def work(_: int) -> None:
        with pool.take() as slot:
            with guard:
                assert slot not in at_work
                at_work.append(slot)
                most[0] = max(most[0], len(at_work))
            time.sleep(0.02)
            with guard:
                at_work.remove(slot)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(24)))
    assert most == [2]


def test_a_slot_is_shared_with_no_other_flow(state: State) -> None:
    one = [Slot(device="cuda:0", index=0)]
    first, second = SlotPool(state, one), SlotPool(state, one)
    order: list[str] = []

    def wait_for_it() -> None:
        with second.take():
            order.append("second")

    with first.take():
        other = threading.Thread(target=wait_for_it)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]


def test_a_stopped_pool_lets_nobody_wait(state: State) -> None:
    pool = SlotPool(state, [Slot(device="cpu", index=0)])
    with pool.take(), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: pool.take().__enter__())
        pool.stop()
        with pytest.raises(SlotsClosed):
            waiting.result(timeout=10)
