"""NVIDIA's Multi-Process Service for trainings that share a GPU: their kernels run beside each other.

Without it a GPU runs one process at a time, in turns. The service is a daemon; ours has folders of its own,
so that it neither meets nor disturbs another's, and it never outlives its owner: a keeper process starts it,
and ends it when the pipe to its owner closes, which the kernel does on any death of the owner.

    python -m tasks.mps CONTROL FOLDER     # the keeper
"""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
START_S = 15.0
QUIT_S = 10.0
MAX_PATH = 80
"""Of the folder: sockets below it have names, and a socket's path is at most 107 bytes."""
PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


@contextmanager
def shared_gpus(folder: Path, control: str | None = None) -> Iterator[Mapping[str, str]]:
    """Environment variables for processes that are to share GPUs; the service runs while the context is open.

    `folder` takes pipes and logs (a temporary one where its path is too long for a socket). Where there is no
    service, or it does not start, the variables are none, processes take turns, and the log says why.
    """
    command = control or shutil.which(CONTROL)
    if command is None:
        logger.warning("%s is not installed: trainings on one GPU take turns", CONTROL)
        yield {}
        return
    with _short(folder) as place:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tasks.mps", command, str(place)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            said = keeper.stdout.readline().decode().strip()
            if said == "ready":
                yield environment(place)
            else:
                logger.warning(
                    "MPS did not start (%s): trainings on one GPU take turns", said or "no reason given"
                )
                yield {}
        finally:
            keeper.stdin.close()
            try:
                keeper.wait(QUIT_S + 5)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
            keeper.stdout.close()


def environment(folder: Path) -> dict[str, str]:
    """What makes a process use the service of a folder."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    if len(str(folder.absolute())) <= MAX_PATH:
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="isoflop-mps-") as elsewhere:
        yield Path(elsewhere)


def keep(control: str, folder: Path) -> None:
    """Start the service, say `ready` or why not, and end it when standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # For trainings to act on; the service goes after them, when the owner lets go.
        signal.signal(number, signal.SIG_IGN)
    env = {**os.environ, **environment(folder)}
    for variable in environment(folder).values():
        Path(variable).mkdir(parents=True, exist_ok=True)
    pipe = folder / "pipe" / "control"
    pipe.unlink(missing_ok=True)
    with (folder / "log" / "daemon.txt").open("ab") as log:
        daemon = subprocess.Popen(
            [control, "-f"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=_end_with_keeper,
        )  # fmt: skip
    try:
        print(_wait(daemon, pipe), flush=True)
        sys.stdin.buffer.read()
    finally:
        _quit(control, daemon, env)


def _end_with_keeper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _wait(daemon: subprocess.Popen[bytes], pipe: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            return f"its control daemon ended with code {daemon.returncode}"
        if pipe.exists():
            return "ready"
        time.sleep(0.05)
    return f"its control daemon did not answer within {START_S:.0f} s"


def _quit(control: str, daemon: subprocess.Popen[bytes], env: Mapping[str, str]) -> None:
    """Ask the daemon to end its servers and itself; then see to it."""
    if daemon.poll() is None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([control], input=b"quit -t 2\n", env=env, timeout=QUIT_S, capture_output=True)
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(QUIT_S / 2)
    # Its servers are of its process group; that there is none left is what this asks for.
    with suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
