"""The Prefect tasks of a sweep: the joints between the flows and the libraries.

Neither torch nor Lightning is imported here: trainings run in processes of their own. Prefect caches nothing:
whether a run is done is MLflow's to say.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import polars as pl
from filelock import Timeout
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.states import State as PrefectState
from prefect.task_runners import ThreadPoolTaskRunner

from sweeps.gather import gather
from sweeps.laws import readers
from sweeps.laws.types import Analysis
from sweeps.plan import Plan, PlannedRun
from sweeps.spec import SweepSpec
from tasks import deployments, holdout, preparation, results, tracking
from tasks.artifact_store import ensure_artifact_store
from tasks.artifacts import published
from tasks.engines import launched_ahead, place
from tasks.errors import UserError, user_errors
from tasks.forecast import Pace
from tasks.live import LivePage, kept_live
from tasks.locks import sweep_lock
from tasks.progress import ProgressWriter, pace_of
from tasks.state import State, open_state
from tasks.time_limit import TimeLimit
from tasks.tracking_db import ensure_tracking_db
from tasks.training import Hearing, Trainer
from xlstm.data import Corpus

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep under way."""

    spec: SweepSpec
    state: State
    progress: ProgressWriter
    name: str
    """Names the folder and the MLflow experiment: the spec's name, or the run table's."""
    profile: str
    table: str | None
    started_at: float
    limit_s: float | None = None
    """Seconds from the flow's start after which its trainings pause."""

    @property
    def folder(self) -> Path:
        return self.state.sweep_dir(self.name)

    @property
    def regenerate(self) -> str:
        """The command that makes the report again."""
        command = f"isoflop report {self.profile}"
        return command if self.table is None else f"{command} --table {self.table}"


def refuse_politely(flow: Callable[P, PrefectState]) -> Callable[P, PrefectState]:
    """Let a flow end in the state `Refused`, with one line, for an error that is the user's to mend."""

    @functools.wraps(flow)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> PrefectState:
        try:
            return flow(*args, **kwargs)
        except user_errors() as error:
            return Failed(name=deployments.REFUSED, message=" ".join(str(error).split()))

    return guarded


@contextmanager
def open_sweep(
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    table: str | None = None,
    limit_s: float | None = None,
) -> Iterator[Sweep]:
    """The sweep of a profile in the state folder, locked: one flow at a time works on it."""
    started_at = time.time()
    spec = preparation.read_spec(profile, overrides)
    state = open_state()
    ensure_tracking_db(state)
    ensure_artifact_store(state)
    deployments.bury_the_dead(state)
    name = spec.name if table is None else Path(table).stem
    lock = sweep_lock(state, name)
    try:
        lock.acquire(timeout=5)
    except Timeout as error:
        raise UserError(
            f"sweep {name}: another flow run is at work on it; wait for it, or cancel it"
        ) from error
    with lock:
        progress = ProgressWriter(state, name, str(flow_run.id))
        yield Sweep(
            spec=spec,
            state=state,
            name=name,
            profile=profile,
            table=table,
            progress=progress,
            started_at=started_at,
            limit_s=limit_s,
        )


@task(name="prepare data", cache_policy=NO_CACHE)
def prepare_data(sweep: Sweep) -> Corpus:
    """The tokenised corpus."""
    sweep.progress.stage("preparing data")
    return preparation.prepare_data(sweep.spec, sweep.state)


@task(name="plan", cache_policy=NO_CACHE)
def make_plan(sweep: Sweep, corpus: Corpus) -> Plan:
    """The runs in the order of their training, written to the sweep's folder and shown as an artifact."""
    plan = preparation.plan_runs(sweep.spec, corpus)
    preparation.save_plan(plan, corpus, sweep.state)
    sweep.progress.plan(plan.runs, slots=place(sweep.spec.resources, sweep.state).at_once)
    create_table_artifact(
        table=results.plan_rows(plan), key=artifact_key("plan", sweep.name), description="Planned runs"
    )
    return plan


class Reporter(Hearing):
    """Tells the followers of a sweep, and the log of its flow, how the runs go on."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def started(self, run: PlannedRun) -> None:
        self.sweep.progress.run(run.run_key, "running")

    def retried(self, run: PlannedRun, attempt: int, error: str) -> None:
        self.sweep.progress.retry(run.run_key, attempt, error)
        get_run_logger().warning("%s: attempt %d, after: %s", run.name, attempt, error)


def train_all(sweep: Sweep, plan: Plan, corpus: Corpus) -> None:
    """Train what no finished MLflow run holds yet, as many at a time as the machine has room for.

    A failed run is a failed task and no more.
    """
    sweep.progress.stage("training")
    train_runs(sweep, plan.runs, corpus)


@task(name="predict the hold-out", cache_policy=NO_CACHE)
def predict_hold_out(sweep: Sweep, corpus: Corpus, analysis: Analysis) -> tuple[PlannedRun, ...]:
    """The runs beyond the grid that the spec asks for, each predicted, and both written down."""
    sweep.progress.stage("predicting the hold-out")
    vocab_size = preparation.vocab_size(sweep.spec, corpus)
    made = holdout.make_hold_out(sweep.spec, analysis, corpus, vocab_size, sweep.state)
    for said in made.predictions:
        get_run_logger().info(
            "%s: predicted %.4f [%.4f, %.4f] nats per token at %s",
            *(said.run_name, said.loss.value, said.loss.low, said.loss.high, said.predicted_at),
        )
    said_of = {(said.arch, said.context_length) for said in made.predictions}
    for group in analysis.groups:
        if (group.arch, group.context_length) not in said_of:
            where = f"{group.arch} at context {group.context_length}"
            get_run_logger().warning("no hold-out of %s: its fits have no optimum at that budget", where)
    sweep.progress.add(made.runs)
    return made.runs


def hold_out(sweep: Sweep, plan: Plan, corpus: Corpus, analysis: Analysis) -> None:
    """Predict the hold-out runs, and only then train them; nothing where the spec asks for none."""
    if sweep.spec.holdout is None:
        return
    runs = predict_hold_out(sweep, corpus, analysis)
    sweep.progress.stage("training the hold-out")
    train_runs(sweep, runs, corpus, others=plan.runs)


def train_runs(
    sweep: Sweep, runs: Sequence[PlannedRun], corpus: Corpus, others: Sequence[PlannedRun] = ()
) -> None:
    """Train runs; `others` may share trunks with them."""
    there = place(sweep.spec.resources, sweep.state)
    wanted = not tracking.seem_settled(sweep.state, [run.run_key for run in runs])
    with (
        launched_ahead(there, wanted=wanted) as launch,
        published(sweep.state, sweep.progress, artifact_key("sweep", sweep.name), _url(sweep)),
        ThreadPoolTaskRunner[PrefectState](max_workers=there.at_once) as runner,
        Trainer(
            sweep.spec,
            sweep.state,
            corpus,
            there.room,
            hearing=Reporter(sweep),
            launch=launch,
            limit=time_limit(sweep, runs),
            runs=(*others, *runs),
        ) as trainer,
        live_page(sweep),
    ):
        futures = [runner.submit(train, {"sweep": sweep, "trainer": trainer, "run": run}) for run in runs]
        wait_for_all(trainer, futures)


def _url(sweep: Sweep) -> str | None:
    return experiment_url(tracking.ensure_experiment(sweep.state, sweep.name))


def time_limit(sweep: Sweep, runs: Sequence[PlannedRun]) -> TimeLimit | None:
    """The limit of a flow that has one; it learns the pace from the runs that finish."""
    if sweep.limit_s is None:
        return None
    before = preparation.measured_pace(runs, sweep.state)

    def by_now() -> Pace:
        here = pace_of(sweep.progress.snapshot())
        return before if here.overall is None else here

    return TimeLimit(length_s=sweep.limit_s, until=sweep.started_at + sweep.limit_s, pace=by_now)


def live_page(sweep: Sweep) -> AbstractContextManager[None]:
    """The sweep's live page and its artifact, kept true while its runs train."""
    logger = get_run_logger()
    key = artifact_key("live", sweep.name)

    def publish(text: str) -> None:
        create_markdown_artifact(text, key=key, description=f"Sweep {sweep.name} under way")

    live = LivePage(sweep.state, sweep.name, sweep.spec.laws.settings())
    logger.info("live page: %s", live.path)
    return kept_live(live, publish, logger.warning)


@task(name="train", task_run_name="train {run.name}", cache_policy=NO_CACHE)
def train(sweep: Sweep, trainer: Trainer, run: PlannedRun) -> PrefectState:
    """One run: Cached where it is finished already, Failed where it cannot be, else trained to its end."""
    name = f"{run.name} (N {run.N:,}, {run.budget:.3g} FLOPs)"
    return completed(trainer, run, sweep.progress, name, "validation loss {:.4f} nats per token")


def completed(
    trainer: Trainer, run: PlannedRun, progress: ProgressWriter, name: str, done: str
) -> PrefectState:
    """Complete a run, tell the progress, and say how its task ended: `name` of one that failed, `done` with
    the loss of one that was trained."""
    outcome = trainer.complete(run)
    progress.run(
        run.run_key, outcome.status, outcome.error, loss=outcome.loss, mlflow_run_id=outcome.mlflow_run_id
    )
    if outcome.status == "failed":
        return Failed(message=f"{name}: {outcome.error}")
    if outcome.status == "paused":
        return Cancelled(name="Paused", message=outcome.error)
    if outcome.status == "cached":
        return Completed(name="Cached", message="a finished MLflow run has this run key")
    return Completed(message=done.format(outcome.loss))


def wait_for_all(trainer: Trainer, futures: Iterable[PrefectFuture[PrefectState]]) -> None:
    """Until every run's task has ended. UserError where no training could be started at all."""
    for future in futures:
        future.wait()
    if trainer.broken is not None:
        raise UserError(trainer.broken)


@task(name="gather", cache_policy=NO_CACHE)
def gather_runs(sweep: Sweep) -> pl.DataFrame:
    """The run table of the sweep's plan, from MLflow."""
    sweep.progress.stage("gathering")
    path = sweep.folder / "plan.parquet"
    if not path.exists():
        raise UserError(f"sweep {sweep.name}: was never planned here; run `isoflop sweep {sweep.name}` first")
    tracking.reconcile(sweep.state)
    runs = gather(pl.read_parquet(path), sweep.state.tracking_uri)
    return results.save_runs(runs, sweep.folder)


@task(name="read run table", cache_policy=NO_CACHE)
def read_runs(
    sweep: Sweep, table: str, columns: Mapping[str, str] | None, units: Mapping[str, str] | None
) -> pl.DataFrame:
    """A run table from a CSV or Parquet file."""
    return results.save_runs(readers.read_runs(table, columns, units), sweep.folder)


@task(name="fit", cache_policy=NO_CACHE)
def fit_all(sweep: Sweep, runs: pl.DataFrame) -> Analysis:
    """Every architecture and context length, and their comparison."""
    sweep.progress.stage("fitting")
    return results.fit(runs, sweep.spec.law_settings(), sweep.folder)


@task(name="report", cache_policy=NO_CACHE)
def write_report(sweep: Sweep, runs: pl.DataFrame, analysis: Analysis) -> Path:
    """The report in the sweep's folder and in MLflow, with links as artifacts."""
    sweep.progress.stage("reporting")
    origin = results.origin_of(
        runs,
        sweep.folder,
        source="trained here" if sweep.table is None else f"run table {sweep.table}",
        spec_yaml=sweep.spec.yaml if sweep.table is None else "",
        wall_time_s=time.time() - sweep.started_at,
        regenerate=sweep.regenerate,
    )
    path = results.report(
        runs,
        analysis,
        origin,
        sweep.folder,
        tracking_uri=None if sweep.table else sweep.state.tracking_uri,
        predicted=[] if sweep.table else holdout.outcomes(sweep.spec, sweep.state),
    )
    experiment = tracking.ensure_experiment(sweep.state, sweep.name)
    files = [path, sweep.folder / "analysis.json", sweep.folder / "runs.parquet"]
    run_id = tracking.log_report(
        sweep.state,
        experiment,
        sweep.name,
        files,
        note=results.note(sweep.name, sweep.spec.description, runs, analysis),
        metrics=results.found(runs, analysis),
    )
    link = report_link(path, experiment, run_id, origin.mlflow_url)
    sweep.progress.reported(str(path), link)
    create_link_artifact(link=link, link_text="the report", key=artifact_key("report", sweep.name))
    text = "\n".join(f"- {line}" for line in (str(results.tally(runs)), *results.answer(analysis)))
    create_markdown_artifact(text, key=artifact_key("result", sweep.name), description=f"Sweep {sweep.name}")
    return path


def is_paused(sweep: Sweep) -> bool:
    """Whether the flow's time was up before its runs were done."""
    return sweep.progress.snapshot().count("paused") > 0


def pause(sweep: Sweep) -> PrefectState:
    """The last word of a flow whose time was up: the same flow again goes on from here."""
    now = sweep.progress.snapshot()
    done, paused = now.count("finished", "cached"), now.count("paused")
    failed = f", {now.count('failed')} failed" if now.count("failed") else ""
    message = f"{done} of {len(now.runs)} runs are finished{failed}; {paused} wait for the next flow run"
    sweep.progress.stage("paused", message)
    return Completed(name=deployments.PAUSED, message=message)


def conclude(sweep: Sweep, runs: pl.DataFrame, analysis: Analysis, report: Path | None) -> PrefectState:
    """The flow's last word: what finished, what failed, and where the report is, if one was asked for."""
    message = f"{results.tally(runs)}; report: {report or 'none was asked for'}"
    sweep.progress.stage("done", "\n".join((str(results.tally(runs)), *results.answer(analysis))))
    return Completed(message=message)


def report_link(path: Path, experiment: str, run_id: str, mlflow_url: str | None) -> str:
    """The report where a browser finds it: in MLflow's UI where there is one, else the file."""
    if mlflow_url is None:
        return path.as_uri()
    return f"{mlflow_url}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path.name}"


def experiment_url(experiment: str) -> str | None:
    """Page of an experiment in MLflow's UI; None where there is none."""
    mlflow_url = os.environ.get("ISOFLOP_MLFLOW_URL")
    return None if mlflow_url is None else f"{mlflow_url}/#/experiments/{experiment}"


def artifact_key(kind: str, sweep: str) -> str:
    """Prefect's keys hold lower-case letters, digits and dashes."""
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', sweep.lower())}"
