"""Which devices there are, and the tokens that keep two trainings from sharing one by accident."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout

from sweeps.spec import Resources
from tasks.errors import UserError
from tasks.state import State

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Room for one training: a device, and which of its runs in parallel this is."""

    device: str
    """`cpu`, or `cuda:0` and so on as this process's children count them."""
    index: int

    @property
    def name(self) -> str:
        return f"{self.device.replace(':', '-')}-{self.index}"


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """NVIDIA GPUs that children of this process will see, asked of the driver and not of torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    names = asked.stdout.strip().splitlines() if asked.returncode == 0 else []
    return names if visible is None else names[: len(visible.split(","))]


def slots(resources: Resources) -> tuple[Slot, ...]:
    """Room for trainings at the same time: one a GPU, or one for `threads` cores, unless the spec says."""
    gpus = 0 if resources.device == "cpu" else len(gpu_names())
    if resources.device == "cuda" and not gpus:
        raise UserError("resources.device = cuda: no NVIDIA GPU is visible here; use auto or cpu")
    if gpus:
        each = resources.runs_in_parallel or 1
        return tuple(Slot(device=f"cuda:{gpu}", index=k) for k in range(each) for gpu in range(gpus))
    count = resources.runs_in_parallel or max(1, cpu_count() // resources.threads)
    return tuple(Slot(device="cpu", index=k) for k in range(count))


class SlotPool:
    """Hands out slots to threads. File locks hold for all flows of a state folder; death frees them."""

    def __init__(self, state: State, available: Sequence[Slot]) -> None:
        self._locks = {
            slot: FileLock(state.lock(f"slot-{slot.name}"), thread_local=False) for slot in available
        }
        self._guard = threading.Lock()
        self.stopped = threading.Event()

    def stop(self) -> None:
        """Let waiting threads give up with `SlotsClosed`."""
        self.stopped.set()

    @contextmanager
    def take(self) -> Iterator[Slot]:
        """A free slot; waits for one."""
        slot = self._wait()
        try:
            yield slot
        finally:
            self._locks[slot].release()

    def _wait(self) -> Slot:
        while not self.stopped.is_set():
            for slot, lock in self._locks.items():
                if self._acquired(lock):
                    return slot
            self.stopped.wait(POLL_S)
        raise SlotsClosed("the sweep is stopping")

    def _acquired(self, lock: FileLock) -> bool:
        """File locks are reentrant within a process, so threads ask one after the other."""
        with self._guard:
            if lock.is_locked:
                return False
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            return True


class SlotsClosed(RuntimeError):
    """No slot is handed out any more."""
