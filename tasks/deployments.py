"""Deployments and their flow runs, through Prefect's client: register, start or join, watch, cancel."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed

from tasks import services
from tasks.environment import environment
from tasks.errors import UserError
from tasks.processes import flow_runs_alive
from tasks.services import POOL
from tasks.state import State, deployment_manifest
from xlstm.training.files import write_atomically

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OPEN = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
"""States that claim a process."""
OVER = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
GONE = "its process is gone"
REFUSED = "Refused"
"""Name of the failed state of a flow whose user has something to mend; its message is one line."""
PAUSED = "Paused"
"""Name of the completed state of a flow whose time was up: started again, it goes on."""
START_GRACE_S = 60.0
"""A worker that lives may take this long from accepting a flow run to starting its process."""


@dataclass(frozen=True, kw_only=True)
class FlowState:
    """State of a flow run."""

    type: str
    name: str
    message: str

    @property
    def final(self) -> bool:
        return self.type in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    @property
    def completed(self) -> bool:
        return self.type == "COMPLETED"


def deploy(state: State) -> None:
    """Register the deployments of prefect.yaml with the server, once for every version of them."""
    manifest = deployment_manifest()
    root = manifest.parent
    stamp = state.prefect_home / "deployed.json"
    version = {"root": str(root), "sha256": _version(manifest)}
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == version and _has_pool():
        return
    _make_pool()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = environment(state) | {"PWD": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{manifest}: Prefect refused it: {reason[-300:]}")
    write_atomically(stamp, json.dumps(version))


def _version(manifest: Path) -> str:
    """Hash of all that is registered: the manifest, and the flows whose parameters the server checks."""
    content = hashlib.sha256(manifest.read_bytes())
    entries = yaml.safe_load(manifest.read_text(encoding="utf-8"))["deployments"]
    for source in sorted({entry["entrypoint"].partition(":")[0] for entry in entries}):
        content.update((manifest.parent / source).read_bytes())
    return content.hexdigest()


def start_or_join(
    state: State, deployment: str, parameters: Mapping[str, Any], sweep: str
) -> tuple[UUID, bool]:
    """Start a flow run of `FLOW/DEPLOYMENT`, or join the one that is under way with the same parameters.

    Returns its id, and whether it was joined. What claims to run and is gone is marked Crashed first.
    """
    bury_the_dead(state)
    with get_client(sync_client=True) as client:
        try:
            target = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise UserError(f"deployment {deployment!r}: not known; see prefect.yaml") from error
        wanted = {**target.parameters, **parameters}
        for run in _runs(client, OPEN, target.id):
            if run.parameters == wanted:
                return run.id, True
        return client.create_flow_run_from_deployment(target.id, parameters=dict(parameters)).id, False


class UnreachableError(RuntimeError):
    """Prefect's server did not answer: it is busy, or gone."""


def flow_state(flow_run_id: UUID) -> FlowState:
    """How a flow run is. UnreachableError where the server does not answer."""
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(flow_run_id).state
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        raise UnreachableError(str(error)) from error
    assert found is not None
    return FlowState(type=found.type.value, name=found.name or "", message=found.message or "")


def cancel(flow_run_id: UUID, wait_s: float = 60.0) -> FlowState:
    """Ask the worker to end a flow run, and wait until it has."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelling(message="asked by the user"))
    deadline = time.monotonic() + wait_s
    while not (now := flow_state(flow_run_id)).final and time.monotonic() < deadline:
        time.sleep(0.5)
    return now


def bury_the_dead(state: State) -> list[UUID]:
    """Mark Crashed what a worker of this state folder started and whose process is gone; the flow runs' ids.

    A kill of worker, server or runner, or a power cut, leaves flow runs and task runs that say Running for
    ever. Flow runs that no worker started, as from a notebook, are not ours to judge.
    """
    living = flow_runs_alive()
    with get_client(sync_client=True) as client:
        buried = [run.id for run in _runs(client, UNDER_WAY) if _is_gone(state, run, living)]
        for flow_run_id in buried:
            client.set_flow_run_state(flow_run_id, Crashed(message=GONE), force=True)
        running = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=list(UNDER_WAY))))
        over = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(OVER))))
        while left := client.read_task_runs(task_run_filter=running, flow_run_filter=over, limit=200):
            for task_run in left:
                client.set_task_run_state(task_run.id, Crashed(message=GONE), force=True)
    return buried


def _runs(
    client: "SyncPrefectClient", states: Sequence[StateType], deployment_id: UUID | None = None
) -> list[FlowRun]:
    only = None if deployment_id is None else DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    return client.read_flow_runs(
        deployment_filter=only,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        ),
    )


def _is_gone(state: State, run: FlowRun, living: Set[str]) -> bool:
    """Whether a run that a worker started has no process, and no living worker is about to start one."""
    if run.deployment_id is None or run.state is None or str(run.id) in living:
        return False
    accepted = run.state.timestamp.timestamp()
    worker = services.recorded(state).get("worker")
    if run.state.type != StateType.PENDING or worker is None or not worker.identity.alive:
        return True
    return worker.identity.started > accepted or time.time() - accepted > START_GRACE_S


def _has_pool() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            return False
    return True


def _make_pool() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return
