"""Start a flow run, or join the one under way, and stay with it to its end."""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import typer
from rich.console import Console

from flows.display import Display, summary
from tasks import deployments, services
from tasks.deployments import FlowState
from tasks.environment import Endpoints
from tasks.errors import UserError
from tasks.progress import SweepProgress, read_progress, read_trainings
from tasks.state import State

LOOK_EVERY_S = 0.5
ASK_EVERY_S = 2.0
"""Seconds between looks at the progress file, and between questions to Prefect's server."""
PAUSED_EXIT_CODE = 75


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of Prefect."""

    deployment: str
    """FLOW/DEPLOYMENT."""
    parameters: Mapping[str, Any]
    sweep: str
    """Name of the sweep's folder."""
    again: str
    """The command that goes on with it."""


def follow(console: Console, state: State, endpoints: Endpoints, request: Request) -> None:
    """Run to the end and say where the results are.

    Exit code 1 unless it completed, 75 (as sysexits.h has it: try again) if its time limit cut it short, 130
    if it was interrupted.

    Raises UserError for what the flow refused.
    """
    deployments.deploy(state)
    run_id, joined = deployments.start_or_join(state, request.deployment, request.parameters, request.sweep)
    link = f"{endpoints.prefect_ui}/runs/flow-run/{run_id}"
    console.print(f"{'following' if joined else 'started'} {request.deployment}: {link}", soft_wrap=True)
    try:
        ended = _watch(console, state, request, run_id)
    except KeyboardInterrupt:
        ended = _interrupted(console, request, run_id)
    _conclude(console, endpoints, request, ended, read_progress(state, request.sweep), link)


def _watch(console: Console, state: State, request: Request, run_id: UUID) -> FlowState:
    asked = 0.0
    now = FlowState(type="SCHEDULED", name="Scheduled", message="")
    with Display(console) as display:
        while True:
            if time.monotonic() - asked > ASK_EVERY_S:
                with contextlib.suppress(deployments.UnreachableError):
                    now = deployments.flow_state(run_id)
                asked = time.monotonic()
                _require_services(state, now)
            progress = read_progress(state, request.sweep)
            if progress is not None and progress.flow_run_id != str(run_id):
                progress = None
            display.show(progress, read_trainings(state, progress) if progress else [], now.name)
            if now.final:
                return now
            if progress is not None and progress.stage == "done":
                asked = 0.0
            time.sleep(LOOK_EVERY_S)


def _require_services(state: State, now: FlowState) -> None:
    """UserError where what the flow run stands on has died."""
    for name, said in (("prefect", "Prefect's server"), ("worker", "Prefect's worker")):
        if not now.final and not services.is_running(state, name):
            log = state.logs / f"{name}.log"
            raise UserError(f"{said} is gone: see {log}, and run the same command again")


def _interrupted(console: Console, request: Request, run_id: UUID) -> FlowState:
    """Ctrl-C: cancel, or leave the flow to the worker. Where nobody can be asked, cancel."""
    answer = "c"
    if console.is_terminal and sys.stdin.isatty():
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            answer = console.input(
                "\n\\[c]ancel the sweep, or \\[l]eave it running in the background? "
            ).strip()
    if answer.lower().startswith("l"):
        console.print(f"it goes on in the background; to follow it again: {request.again}")
        raise typer.Exit(130)
    console.print("cancelling; finished runs are kept")
    deployments.cancel(run_id)
    console.print(f"to go on from here: {request.again}")
    raise typer.Exit(130)


def _conclude(
    console: Console,
    endpoints: Endpoints,
    request: Request,
    ended: FlowState,
    progress: SweepProgress | None,
    link: str,
) -> None:
    if ended.name == deployments.REFUSED:
        raise UserError(ended.message)
    if not ended.completed:
        console.print(f"flow run {ended.name}: {ended.message}", style="red", highlight=False, soft_wrap=True)
        console.print(f"its log: {link}\nto go on from here: {request.again}", soft_wrap=True)
        raise typer.Exit(1)
    assert progress is not None
    if ended.name == deployments.PAUSED:
        console.print(f"paused: {ended.message}\nto go on from here: {request.again}", soft_wrap=True)
        raise typer.Exit(PAUSED_EXIT_CODE)
    if progress.runs:
        console.print(summary(progress, ended.name), highlight=False)
    made = [] if progress.report is None else [f"report   {progress.report}"]
    lines = [progress.message, "", *made, f"MLflow   {endpoints.mlflow_ui}"]
    console.print("\n".join([*lines, f"Prefect  {link}"]), highlight=False, soft_wrap=True)
