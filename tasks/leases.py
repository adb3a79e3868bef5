"""Who uses what of this machine: a ledger of leases that all sweeps of a user share, of any state folder.

A lease is a file that its holder keeps locked, so the kernel ends it with the holder, however that dies. The
training inherits the lock: what it uses is free when it is gone, and not when the flow that started it is.
"""

import fcntl
import itertools
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from tasks.devices import Machine, Need
from tasks.errors import UserError
from tasks.placement import Entry, placed

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Room for one training, for as long as someone holds its file."""

    device: str
    """`cpu`, or `cuda:0` and so on as this process's children count them."""
    descriptor: int
    """The locked file, to be handed to the training."""
    peers: tuple[str, ...] = ()
    """Further devices, which train the run together with the first."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Of these."""


class LeasesClosed(RuntimeError):
    """The sweep stops: nothing is handed out any more."""


def ledger_folder() -> Path:
    """$ISOFLOP_LEASES, or a folder of this user's own below the temporary one. UserError if another's."""
    chosen = os.environ.get("ISOFLOP_LEASES")
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"isoflop-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=chosen is not None, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user: set ISOFLOP_LEASES to a folder of your own")
    return folder


class Ledger:
    """Hands out a machine's cores, memory and GPUs. Threads and processes may share the folder."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder = folder
        self.machine = machine
        self.stopped = threading.Event()
        self._guard = FileLock(folder / "ledger.lock", thread_local=False, is_singleton=False)
        self._threads = threading.Lock()
        self._numbers = itertools.count()

    def stop(self) -> None:
        """Let waiting threads give up with `LeasesClosed`."""
        self.stopped.set()

    @contextmanager
    def take(self, need: Need) -> Iterator[Grant]:
        """Room for a run; waits until there is, and delays none of those who asked before."""
        path, descriptor = self._ask(need)
        try:
            yield self._wait(path, descriptor)
        finally:
            os.close(descriptor)  # the file goes when the next one looks: a training may still hold it

    def held(self) -> list[Entry]:
        """The leases of living holders; the files of dead ones are removed on the way."""
        with self._alone():
            return [entry for _, entry in self._living(but=None)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._threads, self._guard:
            yield

    def _ask(self, need: Need) -> tuple[Path, int]:
        with self._alone():
            since = time.time_ns()
            path = self.folder / f"lease-{since}-{os.getpid()}-{next(self._numbers)}.json"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(descriptor, Entry(since=since, need=need))
        return path, descriptor

    def _wait(self, path: Path, descriptor: int) -> Grant:
        while not self.stopped.is_set():
            with self._alone():
                mine = _read(path)
                others = [entry for _, entry in self._living(but=path)]
                granted = placed(mine, others, self.machine, time.time_ns())
                if granted is not None:
                    _write(descriptor, granted)
                    return self._grant(granted, descriptor)
            self.stopped.wait(POLL_S)
        raise LeasesClosed("the sweep is stopping")

    def _living(self, but: Path | None) -> Iterator[tuple[Path, Entry]]:
        for path in self.folder.glob("lease-*.json"):
            if path == but:
                continue
            if _is_held(path):
                yield path, _read(path)
            else:
                path.unlink()

    def _grant(self, entry: Entry, descriptor: int) -> Grant:
        if entry.need.device == "cpu":
            devices = ["cpu"] * entry.need.devices
        else:
            uuids = [gpu.uuid for gpu in self.machine.gpus]
            devices = [f"cuda:{uuids.index(uuid)}" for uuid in entry.gpus]
        return Grant(
            device=devices[0],
            peers=tuple(devices[1:]),
            strategy=entry.need.strategy,
            descriptor=descriptor,
        )


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _write(descriptor: int, entry: Entry) -> None:
    text = json.dumps(asdict(entry)).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _read(path: Path) -> Entry:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Entry(**{**fields, "need": Need(**fields["need"]), "gpus": tuple(fields.get("gpus", ()))})
