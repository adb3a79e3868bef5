"""What is installed, what it runs on, where the state is, and what is wrong with it."""

import json
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import psutil
from packaging.requirements import Requirement

from tasks import services
from tasks.artifact_store import artifact_store_fault
from tasks.devices import cpu_count, gpu_names
from tasks.errors import UserError
from tasks.launcher import ZYGOTE
from tasks.locks import sweeps_under_way
from tasks.provenance import git_revision, versions
from tasks.state import STATE_VERSION, State
from tasks.tracking_db import integrity_fault, shared_db_fault, tracking_db_fault
from xlstm.training.failures import redact

LOW_DISK_GIB = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination."""

    topic: str
    text: str
    fault: bool = False
    """Something to mend; the text says how."""


def examine(state: State) -> Iterator[Finding]:
    """All findings, in the order in which a reader wants them."""
    yield from installation()
    yield from devices()
    yield from kernels()
    yield from zygote()
    yield from state_folder(state)
    yield from database(state)
    yield from artifact_store(state)
    yield from daemons(state)
    yield from trainings(state)


def installation() -> Iterator[Finding]:
    """Versions, and declared dependencies that are absent or of another version."""
    known = versions() | {"revision": git_revision() or "not from a repository"}
    yield Finding(topic="installed", text=", ".join(f"{name} {found}" for name, found in known.items()))
    yield Finding(topic="python", text=sys.executable, fault=sys.version_info < (3, 11))
    for line in requires("isoflop") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield Finding(topic="installed", text=f"{needed} is missing: run make setup", fault=True)
            continue
        if not needed.specifier.contains(found, prereleases=True):
            yield Finding(
                topic="installed", text=f"{needed.name} {found} is not {needed}: run make setup", fault=True
            )


def devices() -> Iterator[Finding]:
    """CPU, memory, GPUs, and whether torch can use them."""
    memory = psutil.virtual_memory()
    yield Finding(
        topic="cpu",
        text=f"{cpu_count()} cores ({platform.machine()}), {memory.available / 2**30:.1f} of"
        f" {memory.total / 2**30:.1f} GiB memory free",
    )
    gpus = gpu_names()
    if not gpus:
        yield Finding(topic="gpu", text="none visible")
        return
    import torch

    usable = torch.cuda.is_available()
    text = f"{', '.join(gpus)} (torch built for CUDA {torch.version.cuda})"
    cure = "" if usable else ": this torch cannot use it; install a CUDA build of torch"
    yield Finding(topic="gpu", text=text + cure, fault=not usable)


def kernels() -> Iterator[Finding]:
    """Which implementation of the mLSTM each device gets, and which of its kernels were seen to be right."""
    import torch

    from kernels.backends import choose_backend
    from tasks.kernel_verdicts import kept_verdicts, summary

    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield Finding(topic="kernels", text=f"mLSTM on {name}: {choose_backend(None, torch.device(name))}")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        where = f"cuda:{index} ({torch.cuda.get_device_name(device)})"
        lines = summary(list(kept_verdicts(device))) or ["none was tried yet; the first training does it"]
        for line in lines:
            yield Finding(topic="kernels", text=f"{where} {line}")


def zygote() -> Iterator[Finding]:
    """Whether trainings can be started: the process that all are forked from imports the libraries otherwise.

    It hides some, which a package that is there beside ours may need for its import.
    """
    checked = subprocess.run((*ZYGOTE, "--check"), capture_output=True, text=True, check=False)
    lines = checked.stderr.strip().splitlines() or [f"exit code {checked.returncode}"]
    fault = checked.returncode != 0
    text = f"cannot be started: {redact(lines[-1])}" if fault else "can be started"
    yield Finding(topic="trainings", text=text, fault=fault)


def state_folder(state: State) -> Iterator[Finding]:
    """Where it is, what it holds, and whether the disk has room."""
    disk = shutil.disk_usage(state.home)
    free = disk.free / 2**30
    yield Finding(topic="state", text=f"{state.home} (version {STATE_VERSION})")
    low = free < LOW_DISK_GIB
    yield Finding(topic="disk", text=f"{free:.1f} GiB free" + (": make room" if low else ""), fault=low)
    for meta in sorted(state.data.glob("*/meta.json")):
        facts = json.loads(meta.read_text(encoding="utf-8"))
        yield Finding(
            topic="corpus", text=f"{meta.parent.name}: {facts['train']['tokens']:,} training tokens"
        )
    for report in sorted((state.home / "sweeps").glob("*/report.html")):
        yield Finding(topic="report", text=str(report))


def database(state: State) -> Iterator[Finding]:
    """MLflow's file: there, of this version, and whole."""
    if not state.is_tracked_here:
        fault = shared_db_fault(state)
        yield Finding(topic="tracking", text=fault or "PostgreSQL answers", fault=fault is not None)
        return
    if not state.tracking_db.exists():
        yield Finding(topic="mlflow.db", text="not made yet; isoflop up makes it")
        return
    fault = tracking_db_fault(state) or integrity_fault(state)
    yield Finding(topic="mlflow.db", text=fault or "schema and integrity are good", fault=fault is not None)


def artifact_store(state: State) -> Iterator[Finding]:
    """The bucket that the environment names: whether something can be written there."""
    if state.artifact_root != state.artifacts.as_uri():
        fault = artifact_store_fault(state)
        where = redact(state.artifact_root)
        yield Finding(topic="artifacts", text=fault or f"{where} takes them", fault=fault is not None)


def daemons(state: State) -> Iterator[Finding]:
    """The services: running and answering, or not; a record whose process is gone is a fault."""
    try:
        endpoints = services.running_endpoints(state) or services.default_endpoints(state)
    except UserError as error:
        yield Finding(topic="services", text=str(error), fault=True)
        return
    recorded = services.recorded(state)
    for name, service in services.services(state, endpoints).items():
        where = f" on port {service.port}" if service.port else ""
        if name not in recorded:
            yield Finding(topic=name, text="not started")
        elif not services.is_running(state, name):
            yield Finding(topic=name, text="died: run isoflop up to start it again", fault=True)
        elif service.health is not None and not services.answers(service.health_url):
            log = state.logs / f"{name}.log"
            yield Finding(topic=name, text=f"runs{where} and does not answer: see {log}", fault=True)
        else:
            yield Finding(topic=name, text=f"runs{where}")


def trainings(state: State) -> Iterator[Finding]:
    """Sweeps under way, and MLflow runs that say RUNNING though nothing trains them."""
    for name in sweeps_under_way(state):
        yield Finding(topic="sweep", text=f"{name} is under way")
    if not state.is_tracked_here or not state.is_tracked or tracking_db_fault(state) is not None:
        return
    from tasks.tracking import orphans

    left = orphans(state)
    if left:
        yield Finding(
            topic="runs",
            text=f"{len(left)} are RUNNING in MLflow without a process: the next sweep marks them KILLED",
            fault=True,
        )
    yield Finding(topic="runs", text=_counts(state))


def _counts(state: State) -> str:
    with sqlite3.connect(f"file:{state.tracking_db}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT status, count(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY status"
        ).fetchall()
    return ", ".join(f"{count} {status}" for status, count in rows) or "none yet"
