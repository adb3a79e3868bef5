"""Processes that outlive the command that started them: found again, named, stopped as a whole."""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
FLOW_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
ENGINE = re.compile(r"prefect\.(flow_)?engine$|.*prefect/runner/_workspace_\w+\.py$|prefect\.runner\._\w+$")
"""Of the command lines by which Prefect's worker runs a flow."""
OWNER_VARIABLE = "ISOFLOP_SERVICE"
"""In the environment of every service: whose it is, readable from outside."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A process and not merely its number: numbers are used again."""

    pid: int
    started: float
    """Creation time, seconds since the epoch, as psutil gives it."""

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def start_detached(command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> Identity:
    """Start a process in a session of its own, its output appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Identity(pid=process.pid, started=psutil.Process(process.pid).create_time())


def stop(identity: Identity, grace_s: float = 10.0) -> None:
    """End a session leader and all that it started: SIGTERM, then SIGKILL after `grace_s`."""
    if not identity.alive:
        return
    leader = psutil.Process(identity.pid)
    family = [leader, *leader.children(recursive=True)]
    _signal_group(identity.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5.0)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(pid), number)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback device."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def port_holder(port: int) -> psutil.Process | None:
    """The process that listens on a port; None where it is not ours to see."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if listens and connection.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                return psutil.Process(connection.pid)
    return None


def describe(process: psutil.Process | None) -> str:
    """A holder in words: its number and the start of its command."""
    if process is None:
        return "another user's process"
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return f"process {process.pid} ({command[:57] + '...' if len(command) > 60 else command})"
    return f"process {process.pid}"


def owner(process: psutil.Process | None) -> str | None:
    """Which state folder's service a process is, if it is one."""
    if process is None:
        return None
    with contextlib.suppress(psutil.Error):
        return process.environ().get(OWNER_VARIABLE)
    return None


def session_leader(process: psutil.Process) -> Identity:
    """Identity of the leader of a process's session; of the process itself where a kill took its leader."""
    try:
        leader = psutil.Process(os.getsid(process.pid))
    except psutil.NoSuchProcess:
        leader = process
    return Identity(pid=leader.pid, started=leader.create_time())


def flow_runs_alive() -> set[str]:
    """Ids of the Prefect flow runs whose engine is a process of this machine.

    Their trainings have the same variable and end a little later: they do not make a flow run alive.
    """
    ids = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(ENGINE.match(argument) for argument in process.cmdline()):
                ids.add(process.environ().get(FLOW_RUN_VARIABLE, ""))
    return ids - {""}


def owned_sessions(home: str) -> list[Identity]:
    """Every session of a service of this state folder, recorded or left behind, by its leader.

    `kill -9` of a leader leaves processes without one, as the server that MLflow starts; each leads itself.
    """
    leaders = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if owner(process) == home:
                leader = session_leader(process)
                leaders[leader.pid] = leader
    return list(leaders.values())
