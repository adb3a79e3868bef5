"""The process of one training, seen from its owner: waited for, watched, ended, and its end explained."""

import math
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.zygote import GRACE_S, failure_of
from xlstm.training.failures import Failure
from xlstm.training.job import NO_PROGRESS, TIME_IS_UP
from xlstm.training.processes import oom_kills

POLL_S = 1.0
"""Between looks at a training's progress file."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What ends a training from outside."""

    timeout_s: float
    hang_after_s: float = math.inf
    """Longest time without a write to `progress`."""
    progress: Path | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """How a training's process ended."""

    code: int | None
    """Exit code, negative for a signal; None where the zygote does not answer and nobody knows."""
    cause: Failure | None = None
    """TIME_LIMIT or HUNG where the owner ended it."""
    kernel_ran_out: bool = False
    """The kernel killed some process for want of memory meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A training that was forked by the zygote; a context manager that hangs up when left."""

    connection: socket.socket
    """Takes signal numbers; gives the exit code, or closes where the zygote dies."""
    pid: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def wait(self, limits: Limits) -> End:
        """Until the process ends, by itself or, at a limit, by what it is sent."""
        deadline = time.monotonic() + limits.timeout_s
        watch = Watch(limits)
        kills = oom_kills()
        while True:
            with suppress(TimeoutError):
                wait_s = max(0.0, min(deadline - time.monotonic(), watch.poll_s))
                code = self._receive(wait_s)
                return End(code=code, kernel_ran_out=oom_kills() > kills)
            if time.monotonic() >= deadline:
                return self._end(TIME_IS_UP, Failure.TIME_LIMIT)
            if watch.is_stalled():
                return self._end(NO_PROGRESS, Failure.HUNG)

    def _end(self, polite: signal.Signals, cause: Failure) -> End:
        """Ask the training, then have the zygote kill it; kill it from here where that does not answer."""
        for number in (polite, signal.SIGKILL):
            with suppress(TimeoutError, BrokenPipeError):
                self.connection.send(str(int(number)).encode())
                return End(code=self._receive(GRACE_S), cause=cause)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return End(code=None, cause=cause)

    def _receive(self, timeout_s: float) -> int | None:
        """The exit code; None where the zygote is gone."""
        self.connection.settimeout(max(timeout_s, 1e-3))
        try:
            message = self.connection.recv(64)
        except ConnectionResetError:
            # It closed before it had read what it was sent: told once; what it said follows.
            message = self.connection.recv(64)
        return int(message) if message else None


class Watch:
    """Tells whether a file was left alone too long, by a clock that stands still while a machine sleeps."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.poll_s = min(POLL_S, limits.hang_after_s / 4) if math.isfinite(limits.hang_after_s) else math.inf
        self._seen = self._written()
        self._since = time.monotonic()

    def is_stalled(self) -> bool:
        written = self._written()
        if written != self._seen:
            self._seen, self._since = written, time.monotonic()
        return time.monotonic() - self._since > self.limits.hang_after_s

    def _written(self) -> int | None:
        if self.limits.progress is None:
            return None
        try:
            return self.limits.progress.stat().st_mtime_ns
        except FileNotFoundError:
            return None


def explain(end: End, limits: Limits, last_line: str) -> tuple[Failure, str]:
    """The kind of a failure, and its reason in one line, where the training left no result."""
    failure, reason = _kind(end, limits)
    return failure, f"{reason}; last log line: {last_line}" if last_line else reason


def _kind(end: End, limits: Limits) -> tuple[Failure, str]:
    if end.cause is Failure.TIME_LIMIT:
        return end.cause, f"killed after {limits.timeout_s:g} s"
    if end.cause is Failure.HUNG:
        return end.cause, f"killed after {limits.hang_after_s:g} s without progress"
    if end.code is None:
        return Failure.KILLED, "the training process ended with the zygote it was forked from"
    if end.code == -signal.SIGKILL:
        if end.kernel_ran_out:
            return Failure.OUT_OF_MEMORY, "killed by the kernel"
        return Failure.KILLED, "by SIGKILL"
    if end.code < 0:
        failure = Failure.STOPPED if end.code == -signal.SIGTERM else Failure.CRASHED
        return failure, f"by {signal.Signals(-end.code).name}"
    named = failure_of(end.code)
    return named or Failure.CRASHED, f"ended with exit code {end.code} and without a result"


def last_line(log: Path, start: int) -> str:
    """Of what an attempt wrote; where Python died of a signal, the line that says so."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").strip().splitlines()
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return (fatal or lines)[-1].strip()[:300] if lines else ""
