"""Each training in a process of its own: a crash, a kill or a hang is one failed run and not a dead flow."""

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from tasks.child import Child, End, Limits, explain, last_line
from tasks.zygote import GRACE_S, SINGLE_THREADED, Request
from xlstm.training.failures import Failure, describe
from xlstm.training.job import PROGRESS, RESULT, RunResult, TrainJob

LOG = "log.txt"
ZYGOTE = (sys.executable, "-m", "tasks.zygote")
IMPORT_TIMEOUT_S = 300.0
RECORD_TIMEOUT_S = 60.0


class LauncherError(RuntimeError):
    """The process that trainings are forked from did not start."""


class Launcher:
    """Starts trainings from a zygote with the heavy imports done; threads may share it.

    Leaving it, or any death of this process, ends every training that still runs.
    """

    def __init__(
        self, command: Sequence[str] = ZYGOTE, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`environment`: variables that trainings find beside those of this process."""
        self._command = command
        self._environment = environment
        self._guard = threading.Lock()
        self._zygote: _Zygote | None = _Zygote(command, environment)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What leaving it does; once more does nothing."""
        with self._guard:
            self._closed = True
            zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()

    def run(
        self, job: TrainJob, *, timeout_s: float, hang_after_s: float = math.inf, lease: int | None = None
    ) -> RunResult:
        """Train to the end and return what came of it, finished or failed; failing runs do not raise.

        `timeout_s` counts from the start of the training's own process, `hang_after_s` from its last sign of
        life, a write to its progress file. `lease` is an open file that the training keeps open to its end.
        LauncherError where no process can be started at all.
        """
        job.run_dir.mkdir(parents=True, exist_ok=True)
        (job.run_dir / RESULT).unlink(missing_ok=True)
        log = job.run_dir / LOG
        log_start = log.stat().st_size if log.exists() else 0
        limits = Limits(timeout_s=timeout_s, hang_after_s=hang_after_s, progress=job.run_dir / PROGRESS)
        end = self._child({"job": job.to_json(), "log": str(log)}, limits, lease)
        result = _read_result(job.run_dir / RESULT)
        if result is not None:
            return result
        failure, reason = explain(end, limits, last_line(log, log_start))
        self._record(job, failure, reason, log)
        error = describe(failure, reason)
        return RunResult(run_key=job.spec.run_key, status="failed", error=error, failure=failure)

    def _record(self, job: TrainJob, failure: Failure, reason: str, log: Path) -> None:
        """Have the tracker say FAILED for a training that could not; not when leaving, nobody forks then."""
        if not self._closed:
            request = {"job": job.to_json(), "log": str(log), "death": reason, "failure": failure}
            self._child(request, Limits(timeout_s=RECORD_TIMEOUT_S))

    def _child(self, request: Request, limits: Limits, lease: int | None = None) -> End:
        with self._request(request, lease) as child:
            end = child.wait(limits)
        if end.code is None and end.cause is not None:
            self._abandon()
        return end

    def _abandon(self) -> None:
        """Kill a zygote that does not answer; its trainings end with it and are tried again."""
        with self._guard:
            if self._zygote is not None:
                self._zygote.kill()

    def _request(self, request: Request, lease: int | None) -> Child:
        """Ask the zygote for a child; where the zygote died, a new one, which then has to live."""
        with self._guard:
            zygote = self._living()
        child = zygote.request(request, lease)
        if child is None:
            with self._guard:
                if self._zygote is zygote:
                    self._zygote = None
                zygote = self._living()
            child = zygote.request(request, lease)
        if child is None:
            raise LauncherError(f"trainings cannot be started: {zygote.last_words()}")
        return child

    def _living(self) -> "_Zygote":
        if self._closed:
            raise LauncherError("the launcher is closed")
        if self._zygote is None or not self._zygote.alive:
            self._zygote = _Zygote(self._command, self._environment)
        return self._zygote


class _Zygote:
    """The owner's side of tasks.zygote."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        with other:
            # The same process group: what the terminal or the worker sends to the flow reaches the trainings.
            self._process = subprocess.Popen(
                [*command, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, **SINGLE_THREADED, **environment},
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def request(self, request: Request, lease: int | None = None) -> Child | None:
        """A child that works on the request; None where the zygote died instead.

        Its death shows here before `alive` sees it.
        """
        self._asked = True
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(IMPORT_TIMEOUT_S)
        try:
            with theirs:
                descriptors = [theirs.fileno(), *([] if lease is None else [lease])]
                socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
            if number := mine.recv(64):
                return Child(connection=mine, pid=int(number))
        except TimeoutError:
            self.kill()
        except (BrokenPipeError, ConnectionResetError):
            pass
        mine.close()
        return None

    def kill(self) -> None:
        self._process.kill()

    def last_words(self) -> str:
        self._process.wait(timeout=10)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the zygote ended with {self._process.returncode}"

    def close(self) -> None:
        """Hang up, which ends the trainings, and wait for the zygote to follow.

        One that nobody asked for anything has no training to end, and may be importing still.
        """
        self._control.close()
        if not self._asked:
            self.kill()
        try:
            self._process.wait(timeout=GRACE_S + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def _read_result(path: Path) -> RunResult | None:
    return RunResult.from_json(path.read_text()) if path.exists() else None
