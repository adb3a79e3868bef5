"""Whose turn it is: locks that the kernel frees on any death of their holder."""

import threading

from filelock import FileLock, Timeout

from tasks.state import State

POLL_S = 0.2


def sweep_lock(state: State, sweep: str) -> FileLock:
    """Held by the flow of a sweep as long as it lives."""
    return FileLock(state.lock(f"sweep-{sweep}"))


def run_lock(state: State, run_key: str) -> FileLock:
    """Held by the flow that trains a run: another that wants it waits, and then finds it finished."""
    return FileLock(state.lock(f"run-{run_key[:32]}"))


def wait_for(lock: FileLock, stopped: threading.Event) -> bool:
    """Acquire a lock however long it takes; False where `stopped` is set meanwhile."""
    while not stopped.is_set():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            stopped.wait(POLL_S)
        else:
            return True
    return False


def is_held(lock: FileLock) -> bool:
    """Whether another process, or another part of this one, holds a lock."""
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def sweeps_under_way(state: State) -> list[str]:
    """Names of the sweeps that a live flow works on."""
    names = (path.stem.removeprefix("sweep-") for path in (state.home / "locks").glob("sweep-*.lock"))
    return sorted(name for name in names if is_held(sweep_lock(state, name)))
