"""A sweep in Prefect's UI while it trains: a progress bar, and a table of the runs with links."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.progress import ProgressWriter, RunProgress, SweepProgress, read_trainings, time_left_s
from tasks.state import State
from xlstm.training.job import ATTEMPT

EVERY_S = 10.0
ORDER = {"running": 0, "failed": 1, "paused": 2, "finished": 3, "cached": 4, "queued": 5}


@contextmanager
def published(state: State, writer: ProgressWriter, key: str, experiment_url: str | None) -> Iterator[None]:
    """Artifacts `progress-KEY` and `runs-KEY` of the flow run, kept up to date as long as this is entered.

    `experiment_url`: page of the sweep's experiment in MLflow, to which links lead; None for no links.
    """
    progress = writer.snapshot()
    bar = create_progress_artifact(0.0, key=f"progress-{key}", description=describe(state, progress))
    text = runs_table(state, progress, experiment_url)
    table = create_markdown_artifact(text, key=f"runs-{key}", description="Runs")
    assert isinstance(bar, UUID)
    assert isinstance(table, UUID)
    over = threading.Event()

    def keep_up() -> None:
        while not over.wait(EVERY_S):
            _update(state, writer.snapshot(), bar, table, experiment_url)

    thread = threading.Thread(target=keep_up, name="artifacts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _update(state, writer.snapshot(), bar, table, experiment_url)


def _update(state: State, progress: SweepProgress, bar: UUID, table: UUID, url: str | None) -> None:
    """A server that is busy or gone misses a picture; no run depends on it."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        done = ArtifactUpdate(data=percent(progress), description=describe(state, progress))
        client.update_artifact(bar, done)
        client.update_artifact(table, ArtifactUpdate(data=runs_table(state, progress, url)))


def percent(progress: SweepProgress) -> float:
    """Share of the estimated work that has ended, 0 to 100: large runs count for more."""
    ended = sum(run.estimated_s for run in progress.runs if run.status not in ("queued", "running", "paused"))
    return round(100 * ended / (sum(run.estimated_s for run in progress.runs) or 1.0), 1)


def describe(state: State, progress: SweepProgress) -> str:
    """Counts and the time left, one line."""
    counts = ", ".join(
        f"{count} {status}"
        for status in ORDER
        if (count := progress.count(status))  # type: ignore[arg-type]
    )
    left = time_left_s(progress, read_trainings(state, progress))
    return f"{counts}; about {left / 60:.1f} min left" if left else counts


def runs_table(state: State, progress: SweepProgress, experiment_url: str | None) -> str:
    """Markdown: what trains and what failed first, in the plan's order otherwise."""
    rows = ["| run | budget | status | loss | |", "|---|---|---|---|---|"]
    for run in sorted(progress.runs, key=lambda run: ORDER[run.status]):
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        said = (run.error or "").replace("|", "\\|")
        rows.append(
            f"| {_linked(state, run, experiment_url)} | {run.budget:.3g} | {run.status} | {loss} | {said} |"
        )
    return "\n".join(rows)


def _linked(state: State, run: RunProgress, experiment_url: str | None) -> str:
    attempt = state.run_dir(run.run_key) / ATTEMPT
    run_id = run.mlflow_run_id
    if run_id is None and run.status == "running" and attempt.exists():
        run_id = attempt.read_text(encoding="utf-8")
    return (
        run.name
        if run_id is None or experiment_url is None
        else f"[{run.name}]({experiment_url}/runs/{run_id})"
    )
