"""The process that every training is forked from: it imports the heavy libraries once and trains nothing.

A fresh interpreter spends 8 to 10 s on imports before its first step; a fork of this one, none. To stay
forkable it has one thread and no CUDA context. To leave no orphans, it ends when the socket to its owner
closes, which the kernel does on any death of the owner, and its children end with it by PR_SET_PDEATHSIG.
(That signal would not do for the zygote itself: it comes when the *thread* that started a process ends, and a
flow starts things from threads.)

    python -m tasks.zygote --check     # whether trainings could be started: its imports, and no more
"""

import faulthandler
import gc
import importlib
import importlib.metadata
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from tasks.state import ARTIFACTS_VARIABLE
from xlstm.training.failures import Failure, classify
from xlstm.training.processes import end_with

GRACE_S = 3.0
"""From the owner's end to the trainings': time to say FAILED."""
MAX_MESSAGE = 1 << 17
OOM_SCORE = "800"
"""Where memory runs out, the kernel is to end a training and not the flow."""

PRELOAD = (
    "xlstm.training.run",
    "alembic.command",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "sqlalchemy.dialects.sqlite",
)
PRELOAD_S3 = ("boto3", "mlflow.store.artifact.s3_artifact_repo")
"""Where artifacts go to a bucket: half a second for every training otherwise."""
HIDDEN = ("matplotlib", "pandas", "polars", "pyarrow", "scipy", "transformers")
"""MLflow and torchmetrics import these where they find them; they take seconds, and training needs none.

pandas, polars and pyarrow start threads, too.
"""

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For libraries that start threads when they are imported; a training sets its own number later."""

Request = dict[str, str]
"""`log`: the child's standard output and error; the rest is for `work`."""
FIRST_EXIT_CODE = 64
"""Exit codes from here on name kinds of failure, for a training that cannot even write its result."""


def exit_code(failure: Failure) -> int:
    """The exit code that names a kind of failure."""
    return FIRST_EXIT_CODE + list(Failure).index(failure)


def failure_of(code: int) -> Failure | None:
    """Inverse of `exit_code`; None for any other code."""
    named = 0 <= code - FIRST_EXIT_CODE < len(Failure)
    return list(Failure)[code - FIRST_EXIT_CODE] if named else None


class Zygote:
    """Forks a child for each request on `control`; tells its number and its end on the socket sent along."""

    def __init__(self, control: socket.socket, work: Callable[[Request], None]) -> None:
        self.control = control
        self.work = work
        self.pid = os.getpid()
        self.children: dict[int, socket.socket | None] = {}
        """By process number: the socket of the one who asked, None where that end is closed."""
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Until the owner is gone; then end the children."""
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Signals to the whole group, as Ctrl-C, are for the owner and the trainings to act on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.selector.register(self.wake_read, selectors.EVENT_READ, self._reap)
        self.selector.register(self.control, selectors.EVENT_READ, self._request)
        while self.control.fileno() >= 0:
            for key, _ in self.selector.select():
                key.data()
        self._end_children()

    def _request(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 2)
        if not message:
            self.selector.unregister(self.control)
            self.control.close()
            return
        connection = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._run_child(json.loads(message))
        for lease in descriptors[1:]:  # the child's to hold, and nobody's when it has ended
            os.close(lease)
        self.children[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._command(pid))
        with suppress(BrokenPipeError):
            connection.send(str(pid).encode())

    def _command(self, pid: int) -> None:
        """Send the child the signal that is asked for; SIGTERM where nobody waits for it any more."""
        connection = self.children.get(pid)
        if connection is None:  # or reaped a moment ago, in the same round of events
            return
        with suppress(ConnectionResetError):
            if message := connection.recv(16):
                os.kill(pid, int(message))
                return
        os.kill(pid, signal.SIGTERM)
        self._forget(connection)
        self.children[pid] = None

    def _forget(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        connection.close()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.wake_read, 4096)
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self.children.pop(pid)
            if connection is not None:
                with suppress(BrokenPipeError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                self._forget(connection)

    def _end_children(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self.children and time.monotonic() < deadline:
            time.sleep(0.02)
            self._reap()

    def _run_child(self, request: Request) -> None:
        """Never returns: what lies above this frame belongs to the zygote."""
        code = exit_code(Failure.ERROR)
        try:
            self._leave()
            _redirect(Path(request["log"]))
            faulthandler.enable(all_threads=False)
            self.work(request)
            code = 0
        except BaseException as error:
            code = exit_code(classify(error))
            with suppress(OSError):
                traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _leave(self) -> None:
        """Become a process of its own that dies with the zygote, and hold none of its sockets."""
        end_with(self.pid)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.selector.close()
        self.control.close()
        for connection in self.children.values():
            if connection is not None:
                connection.close()
        for descriptor in (self.wake_read, self.wake_write):
            os.close(descriptor)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def work(request: Request) -> None:
    """In the child: train, or record the death of a training that could not."""
    from xlstm.training.job import TrainJob
    from xlstm.training.run import record_death, train

    job = TrainJob.from_json(request["job"])
    if "death" in request:
        record_death(job, Failure(request["failure"]), request["death"])
    else:
        train(job)


def require_one_thread() -> None:
    """A fork copies the calling thread alone: locks that others hold would stay locked for ever."""
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    if len(threads) > 1:
        raise RuntimeError(f"imports started threads, the zygote cannot fork: {', '.join(threads)}")


def hide(packages: Collection[str]) -> None:
    """Have packages look as if they were not installed, to who imports them and to who asks first."""
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]
    installed = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name in packages:
            raise importlib.metadata.PackageNotFoundError(distribution_name)
        return installed(distribution_name)

    importlib.metadata.version = version


def preload() -> None:
    """Import what trainings need. RuntimeError where that started threads."""
    hide(HIDDEN)
    # What is here after the imports stays: nobody need look for garbage meanwhile, which takes a fifth of
    # their time; children need not scan it, and pages that are not touched are not copied.
    gc.disable()
    to_bucket = os.environ.get(ARTIFACTS_VARIABLE, "").startswith("s3:")
    for module in (*PRELOAD, *(PRELOAD_S3 if to_bucket else ())):
        importlib.import_module(module)
    require_one_thread()
    gc.freeze()
    gc.enable()


def main(descriptor: int, work: Callable[[Request], None] = work) -> None:
    """Serve the owner at the other end of the socket `descriptor`; never returns."""
    preload()
    Zygote(socket.socket(fileno=descriptor), work).serve()
    os._exit(0)  # to take torch apart, module by module, would keep the owner waiting


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        os.environ.update(SINGLE_THREADED)
        preload()
        os._exit(0)
    main(int(sys.argv[1]))
