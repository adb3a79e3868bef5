"""The ledger: nobody takes what is not there, and what a dead holder had is free."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.devices import Gpu, Machine, Need
from tasks.errors import UserError
from tasks.leases import LeasesClosed, Ledger, ledger_folder

GIB = 2**30
MACHINE = Machine(
    threads=4,
    memory_bytes=8 * GIB,
    gpus=tuple(Gpu(name="H", uuid=f"GPU-{k}", memory_bytes=10 * GIB) for k in range(2)),
)


def cpu(threads: int = 1, gib: float = 1.0) -> Need:
    return Need(device="cpu", threads=threads, memory_bytes=int(gib * GIB))


def gpu(share: float, gib: float = 1.0) -> Need:
    return Need(device="cuda", threads=1, memory_bytes=GIB, gpu_share=share, gpu_bytes=int(gib * GIB))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, MACHINE)


def another(ledger: Ledger) -> Ledger:
    """As another flow sees it."""
    return Ledger(ledger.folder, ledger.machine)


def waits(ledger: Ledger, need: Need) -> bool:
    """Whether a request is not granted at once."""
    other = another(ledger)

    def ask() -> bool:
        try:
            with other.take(need):
                return False
        except LeasesClosed:
            return True

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask)
        time.sleep(0.3)
        other.stop()
        return asked.result(timeout=10)


def test_cores_and_memory_are_counted_over_all_flows(ledger: Ledger) -> None:
    with ledger.take(cpu(threads=3, gib=5)):
        assert not waits(ledger, cpu(threads=1, gib=3))
        assert waits(ledger, cpu(threads=2))
        assert waits(ledger, cpu(threads=1, gib=3.5))
    assert not waits(ledger, cpu(threads=4, gib=8))
    assert ledger.held() == []


def test_gpus_are_shared_by_fractions_and_filled_evenly(ledger: Ledger) -> None:
    with ledger.take(gpu(0.5)) as first, ledger.take(gpu(0.5)) as second:
        assert {first.device, second.device} == {"cuda:0", "cuda:1"}
        assert waits(ledger, gpu(0.6))
        with ledger.take(gpu(0.5)) as third, ledger.take(gpu(0.5)) as fourth:
            assert {third.device, fourth.device} == {"cuda:0", "cuda:1"}
            assert waits(ledger, gpu(0.1))


def test_three_thirds_fit_on_a_gpu(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Machine(threads=8, memory_bytes=99 * GIB, gpus=MACHINE.gpus[:1]))
    with ledger.take(gpu(1 / 3)), ledger.take(gpu(1 / 3)), ledger.take(gpu(1 / 3)):
        assert waits(ledger, gpu(0.01))


def test_the_memory_of_a_gpu_counts_too_but_one_run_may_always_try(ledger: Ledger) -> None:
    with ledger.take(gpu(0.1, gib=6)) as a, ledger.take(gpu(0.1, gib=40)) as b:
        assert {a.device, b.device} == {"cuda:0", "cuda:1"}
        assert waits(ledger, gpu(0.1, gib=5))
        assert not waits(ledger, gpu(0.1, gib=4))


def test_who_asks_first_is_served_first(ledger: Ledger) -> None:
    order: list[str] = []

    def work(flow: Ledger, name: str, need: Need) -> None:
        with flow.take(need):
            order.append(name)
            time.sleep(0.05)

    with ThreadPoolExecutor(4) as threads:
        with ledger.take(cpu(threads=3)):
            large = threads.submit(work, another(ledger), "large", cpu(threads=4))
            time.sleep(0.3)
            small = threads.submit(work, another(ledger), "small", cpu(threads=1))
            time.sleep(0.3)
            assert order == []
        large.result(timeout=10)
        small.result(timeout=10)
    assert order == ["large", "small"]


def test_a_wait_for_a_gpu_keeps_nobody_from_a_core(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Machine(threads=8, memory_bytes=99 * GIB, gpus=MACHINE.gpus[:1]))
    with ledger.take(gpu(1.0)), ThreadPoolExecutor(1) as threads:
        other = another(ledger)
        waiting = threads.submit(lambda: other.take(gpu(1.0)).__enter__())
        time.sleep(0.3)
        assert not waits(ledger, cpu())
        other.stop()
        with pytest.raises(LeasesClosed):
            waiting.result(timeout=10)


HOLDER = """
import os, sys, time
from pathlib import Path
from tasks.devices import Machine, Need
from tasks.leases import Ledger
ledger = Ledger(Path(sys.argv[1]), Machine(threads=4, memory_bytes=8 * 2**30))
with ledger.take(Need(device="cpu", threads=4, memory_bytes=2**30)) as grant:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    time.sleep(60)
"""


def test_a_lease_lives_as_long_as_the_flow_or_its_training(ledger: Ledger) -> None:
    """The holder is killed; what it forked holds on; when that is killed too, the room is free at once."""
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(ledger.folder)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    training = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    assert waits(ledger, cpu())
    os.kill(training, signal.SIGKILL)
    start = time.monotonic()
    with ledger.take(cpu(threads=4)):
        assert time.monotonic() - start < 5
    owner.stdout.close()


def test_a_stopped_ledger_lets_nobody_wait(ledger: Ledger) -> None:
    with ledger.take(cpu(threads=4)), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: ledger.take(cpu()).__enter__())
        ledger.stop()
        with pytest.raises(LeasesClosed):
            waiting.result(timeout=10)


def test_two_flows_never_take_more_than_there_is(ledger: Ledger) -> None:
    flows, guard = [ledger, another(ledger)], threading.Lock()
    at_work: list[Need] = []
    most = [0]

    def work(number: int) -> None:
        rng = random.Random(number)
        wanted = cpu(threads=rng.randint(1, 4), gib=rng.uniform(0.5, 4))
        with flows[number % 2].take(wanted):
            with guard:
                at_work.append(wanted)
                assert sum(n.threads for n in at_work) <= MACHINE.threads
                assert sum(n.memory_bytes for n in at_work) <= MACHINE.memory_bytes
                most[0] = max(most[0], len(at_work))
            time.sleep(0.01)
            with guard:
                at_work.remove(wanted)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(24)))
    assert most[0] > 1


def test_several_gpus_are_one_lease(ledger: Ledger) -> None:
    both = Need(
        device="cuda", threads=2, memory_bytes=GIB, gpu_share=1.0, gpu_bytes=GIB, devices=2, strategy="fsdp"
    )
    with ledger.take(both) as grant:
        assert (grant.device, grant.peers, grant.strategy) == ("cuda:0", ("cuda:1",), "fsdp")
        assert waits(ledger, gpu(0.1))
    with ledger.take(Need(device="cpu", threads=3, memory_bytes=GIB, devices=3)) as grant:
        assert (grant.device, grant.peers) == ("cpu", ("cpu", "cpu"))
        assert waits(ledger, cpu(threads=2))


def test_the_ledger_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISOFLOP_LEASES")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = ledger_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to("/")
    with pytest.raises(UserError, match="belongs to another user"):
        ledger_folder()


def test_a_file_without_a_holder_is_swept_away(ledger: Ledger) -> None:
    dead = ledger.folder / "lease-1-1-0.json"
    dead.write_text("")
    assert ledger.held() == []
    assert not dead.exists()
    with (ledger.folder / "lease-2-2-0.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(
            '{"since": 1, "granted": true, "need": {"device": "cpu", "threads": 4, "memory_bytes": 1}}'
        )
        file.flush()
        assert waits(ledger, cpu())
