"""What the processes of a training owe to each other. Light: no torch here."""

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that started it ends, however it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it was asked
        os._exit(1)


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since its start, in control groups and out."""
    try:
        counters = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in counters if line.startswith("oom_kill "))


def thread_count() -> int:
    """Threads of this process: a fork copies the calling one alone, and the locks of all."""
    return len(list(Path("/proc/self/task").iterdir()))
