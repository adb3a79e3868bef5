"""The embedded services of a state folder: Prefect's server and worker, and MLflow's server, on loopback.

They run detached and outlive the command that started them; `services.json` says which processes they are.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from tasks import processes
from tasks.artifact_store import ensure_artifact_store
from tasks.environment import Endpoints, environment
from tasks.errors import UserError
from tasks.processes import LOOPBACK, OWNER_VARIABLE, Identity
from tasks.state import State, project_root
from tasks.tracking_db import ensure_tracking_db
from xlstm.training.files import write_atomically

POOL = "isoflop"
START_TIMEOUT_S = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Service:
    """One daemon: how to start it, and how to see that it is up."""

    name: str
    command: tuple[str, ...]
    port: int | None = None
    health: str | None = None
    """Path that answers 200 once the service is up."""
    port_variable: str = ""

    @property
    def health_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}{self.health}"


def default_endpoints(state: State) -> Endpoints:
    """Ports that belong to a state folder: two checkouts on one machine do not meet, and links keep working.

    $ISOFLOP_PREFECT_PORT and $ISOFLOP_MLFLOW_PORT choose others.
    """
    base = 20_000 + 2 * (zlib.crc32(str(state.home).encode()) % 5_000)
    return Endpoints(
        prefect_port=_port("ISOFLOP_PREFECT_PORT", base), mlflow_port=_port("ISOFLOP_MLFLOW_PORT", base + 1)
    )


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable)
    if not text:
        return default
    if not text.isdecimal() or not 1024 <= int(text) <= 65_535:
        raise UserError(f"{variable} = {text!r}: must be a port between 1024 and 65535")
    return int(text)


def services(state: State, endpoints: Endpoints) -> dict[str, Service]:
    """The three daemons, in the order in which they start."""
    daemons = (_prefect(endpoints), _mlflow(endpoints), _worker())
    return {daemon.name: daemon for daemon in daemons}


def _prefect(endpoints: Endpoints) -> Service:
    port = endpoints.prefect_port
    return Service(
        name="prefect",
        command=_module("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        port=port,
        health="/api/health",
        port_variable="ISOFLOP_PREFECT_PORT",
    )


def _mlflow(endpoints: Endpoints) -> Service:
    """One worker process and no job runner: 535 MiB instead of 3.5 GiB. Its stores are in `environment`."""
    port = endpoints.mlflow_port
    address = ("--host", LOOPBACK, "--port", str(port), "--workers", "1")
    return Service(
        name="mlflow",
        command=_module("mlflow", "server", *address),
        port=port,
        health="/health",
        port_variable="ISOFLOP_MLFLOW_PORT",
    )


def _worker() -> Service:
    return Service(
        name="worker", command=_module("prefect", "worker", "start", "--pool", POOL, "--type", "process")
    )


def _module(*command: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *command)


def up(state: State, say: Say = lambda line: None) -> Endpoints:
    """Start what does not run, wait until Prefect answers, and return where everything listens.

    MLflow's server is only looked at, so it is not waited for: see `wait_for_mlflow`.
    UserError names a busy port and its holder, or the log of a service that died.
    """
    with FileLock(state.lock("services")):
        ensure_artifact_store(state)
        endpoints = running_endpoints(state)
        if endpoints is None:
            down(state, locked=True)
            endpoints = default_endpoints(state)
        daemons = services(state, endpoints)
        missing = [d for d in daemons.values() if not is_running(state, d.name)]
        for daemon in missing:
            _claim_port(state, daemon)
        if missing:
            say("starting " + ", ".join(daemon.name for daemon in missing))
        if daemons["prefect"] in missing:
            _start(state, daemons["prefect"], endpoints)
        ensure_tracking_db(state)
        if daemons["mlflow"] in missing:
            _start(state, daemons["mlflow"], endpoints)
        _wait(state, daemons["prefect"])
        if daemons["worker"] in missing:
            _start(state, daemons["worker"], endpoints)
    return endpoints


def wait_for_mlflow(state: State, endpoints: Endpoints) -> None:
    """Return once MLflow's server answers."""
    _wait(state, services(state, endpoints)["mlflow"])


def down(state: State, *, locked: bool = False) -> list[str]:
    """Stop every service of this state folder; the names of those that ran."""
    if not locked:
        with FileLock(state.lock("services")):
            return down(state, locked=True)
    stopped = [name for name in ("worker", "mlflow", "prefect") if is_running(state, name)]
    for name in stopped:
        processes.stop(recorded(state)[name].identity)
    for stray in processes.owned_sessions(str(state.home)):
        processes.stop(stray)
    state.services_file.unlink(missing_ok=True)
    return stopped


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of services.json."""

    identity: Identity
    port: int | None


def is_running(state: State, name: str) -> bool:
    """Whether the process that services.json names is still that process."""
    record = recorded(state).get(name)
    return record is not None and record.identity.alive


def running_endpoints(state: State) -> Endpoints | None:
    """Where the services listen; None while Prefect's server does not run, and then nothing else counts."""
    records = recorded(state)
    if not is_running(state, "prefect"):
        return None
    defaults = default_endpoints(state)
    mlflow = records["mlflow"].port if is_running(state, "mlflow") else None
    return Endpoints(
        prefect_port=records["prefect"].port or defaults.prefect_port,
        mlflow_port=mlflow or defaults.mlflow_port,
    )


def answers(url: str) -> bool:
    """Whether a URL answers 200 within a second or so."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def recorded(state: State) -> dict[str, Record]:
    """What services.json says."""
    try:
        entries = json.loads(state.services_file.read_text(encoding="utf-8"))
        return {
            name: Record(identity=Identity(**entry["identity"]), port=entry["port"])
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{state.services_file}: cannot be read: stop the services, and delete it") from error


def _start(state: State, service: Service, endpoints: Endpoints) -> None:
    env = environment(state, endpoints) | {OWNER_VARIABLE: str(state.home)}
    identity = processes.start_detached(
        service.command, env, state.logs / f"{service.name}.log", cwd=project_root()
    )
    records = recorded(state) | {service.name: Record(identity=identity, port=service.port)}
    text = json.dumps({name: asdict(record) for name, record in records.items()}, indent=2)
    write_atomically(state.services_file, text)


def _claim_port(state: State, service: Service) -> None:
    """See that the port is free: a service of this very folder, left behind, is stopped; others are named."""
    if service.port is None or processes.port_is_free(service.port):
        return
    holder = processes.port_holder(service.port)
    if holder is not None and processes.owner(holder) == str(state.home):
        processes.stop(processes.session_leader(holder))
        if processes.port_is_free(service.port):
            return
    raise UserError(
        f"port {service.port} of {service.name} is busy: {processes.describe(holder)} listens there:"
        f" stop it, or choose another port with {service.port_variable}"
    )


def _wait(state: State, service: Service) -> None:
    log = state.logs / f"{service.name}.log"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(service.health_url):
        if not is_running(state, service.name):
            raise UserError(f"{service.name} died at its start: {_tail(log)}: the log is {log}")
        if time.monotonic() > deadline:
            raise UserError(f"{service.name} does not answer after {START_TIMEOUT_S:.0f} s: see {log}")
        time.sleep(0.1)


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "its log is empty")
