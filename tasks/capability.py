"""The Prefect tasks of a capability suite: plan, train, gather, report.

Trainings go the way of a sweep's: a process each, tracked, retried, resumed from their last checkpoint, and
never repeated where a finished MLflow run holds their key.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from filelock import Timeout
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.states import State as PrefectState
from prefect.task_runners import ThreadPoolTaskRunner

from reports.capability import render, sentences
from reports.provenance import Provenance
from sweeps.capability.claims import claims
from sweeps.capability.plan import SuiteRun, plan_suite
from sweeps.capability.results import Outcome, Results, outcome_of
from sweeps.capability.spec import CapabilitySpec, TextSource, find_suite
from sweeps.plan import PlannedRun, memory_bytes
from sweeps.resources import Resources
from tasks import deployments, tracking
from tasks.artifacts import published
from tasks.capability_spec import read_suite
from tasks.engines import place
from tasks.errors import UserError
from tasks.locks import sweep_lock
from tasks.pipeline import artifact_key, completed, experiment_url, report_link, wait_for_all
from tasks.progress import ProgressWriter
from tasks.provenance import git_revision, versions
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db
from tasks.training import Hearing, Trainer
from xlstm.capability.domains import domain_folder, prepare_domains
from xlstm.capability.text import Domain
from xlstm.data import load_corpus
from xlstm.data.corpus import META
from xlstm.training.files import write_atomically

TEXT_FOLDER = "capability"
"""Below the state folder's `data/`: the domains' text, which all suites share."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite under way, with the names that a sweep gives the same things."""

    spec: CapabilitySpec
    resources: Resources
    state: State
    progress: ProgressWriter
    profile: str
    started_at: float

    @property
    def name(self) -> str:
        """Names the folder and the MLflow experiment."""
        return self.spec.name

    @property
    def folder(self) -> Path:
        """Where the text lies that the trainings read."""
        return self.state.data / TEXT_FOLDER

    @property
    def home(self) -> Path:
        """Where plan, results and report lie."""
        return self.state.sweep_dir(self.name)


class SuitePlannedRun(PlannedRun):
    """A run that its suite can find again in the tracker."""

    @property
    def tags(self) -> dict[str, str]:
        """With the experiment that the run belongs to."""
        return {**super().tags, "isoflop.capability": self.name.partition("-")[0]}


@contextmanager
def open_suite(profile: str, overrides: Mapping[str, Any] | None = None) -> Iterator[Suite]:
    """The suite of a profile in the state folder, locked: one flow at a time works on it."""
    started_at = time.time()
    spec, resources = read_suite(profile, overrides)
    state = open_state()
    ensure_tracking_db(state)
    deployments.bury_the_dead(state)
    lock = sweep_lock(state, spec.name)
    try:
        lock.acquire(timeout=5)
    except Timeout as error:
        raise UserError(
            f"{spec.name}: another flow run is at work on it; wait for it, or cancel it"
        ) from error
    with lock:
        yield Suite(
            spec=spec,
            resources=resources,
            state=state,
            progress=ProgressWriter(state, spec.name, str(flow_run.id)),
            profile=profile,
            started_at=started_at,
        )


@task(name="prepare text", cache_policy=NO_CACHE)
def prepare_text(suite: Suite) -> dict[str, tuple[Domain, ...]]:
    """The domains of text on this machine, by experiment. CorpusError where there are not two."""
    suite.progress.stage("preparing data")
    found = {}
    for experiment in suite.spec.experiments:
        source = experiment.task
        if isinstance(source, TextSource):
            found[experiment.name] = prepare_domains(
                suite.folder, source.domains, source.max_bytes, source.least_held_out
            )
            absent = set(source.domains) - {domain.name for domain in found[experiment.name]}
            if absent:
                get_run_logger().warning("too little text here for: %s", ", ".join(sorted(absent)))
    return found


@task(name="plan suite", cache_policy=NO_CACHE)
def plan(suite: Suite, domains: Mapping[str, tuple[Domain, ...]]) -> tuple[SuiteRun, ...]:
    """The runs, in the suite's progress and as an artifact."""
    runs = plan_suite(suite.spec, domains)
    at_once = place(suite.resources, suite.state).at_once
    suite.progress.plan([planned_run(run, runs) for run in runs], slots=at_once)
    create_table_artifact(
        table=[{"run": run.name, "N": run.N, "seconds": run.estimated_s} for run in runs],
        key=artifact_key("plan", suite.name),
        description="Planned runs",
    )
    return runs


def planned_run(run: SuiteRun, runs: Sequence[SuiteRun]) -> SuitePlannedRun:
    """A run as the trainer takes it; the budget that groups it is the mean FLOPs of its experiment."""
    spec = run.spec
    group = [other.train_flops for other in runs if other.experiment == run.experiment]
    tokens = spec.batch_size * spec.context_length
    return SuitePlannedRun(
        spec=spec,
        name=run.name,
        budget=fmean(group),
        N=run.N,
        N_non_embedding=run.N_non_embedding,
        train_flops=run.train_flops,
        estimated_s=run.estimated_s,
        memory_bytes=memory_bytes(spec.model, run.N, tokens, spec.precision),
    )


class Reporter(Hearing):
    """Tells the followers of a suite, and the log of its flow, how the runs go on."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite

    def started(self, run: PlannedRun) -> None:
        """A run is trained now."""
        self.suite.progress.run(run.run_key, "running")

    def retried(self, run: PlannedRun, attempt: int, error: str) -> None:
        """A run is tried again."""
        self.suite.progress.retry(run.run_key, attempt, error)
        get_run_logger().warning("%s: attempt %d, after: %s", run.name, attempt, error)


def train_all(suite: Suite, runs: Sequence[SuiteRun]) -> None:
    """Train what no finished MLflow run holds yet. A failed run is a failed task and no more."""
    suite.progress.stage("training")
    there = place(suite.resources, suite.state)
    url = experiment_url(tracking.ensure_experiment(suite.state, suite.name))
    with (
        published(suite.state, suite.progress, artifact_key("suite", suite.name), url),
        ThreadPoolTaskRunner[PrefectState](max_workers=there.at_once) as runner,
        Trainer(
            suite, suite.state, suite, there.room, hearing=Reporter(suite), launch=there.launch
        ) as trainer,
    ):
        futures = [
            runner.submit(train, {"suite": suite, "trainer": trainer, "run": planned_run(run, runs)})
            for run in runs
        ]
        wait_for_all(trainer, futures)


@task(name="train and measure", task_run_name="train {run.name}", cache_policy=NO_CACHE)
def train(suite: Suite, trainer: Trainer, run: PlannedRun) -> PrefectState:
    """One run: Cached where it is finished already, Failed where it cannot be, else trained and measured."""
    return completed(trainer, run, suite.progress, run.name, "held-out loss {:.4f} nats per answer")


@task(name="gather measurements", cache_policy=NO_CACHE)
def gather(suite: Suite, runs: Sequence[SuiteRun]) -> Results:
    """Every run's measurements, from MLflow; kept as `results.json`. UserError where none is finished."""
    suite.progress.stage("gathering")
    tracking.reconcile(suite.state)
    settled = tracking.settled(suite.state)
    client = tracking.client(suite.state.tracking_uri)
    outcomes = tuple(_outcome(client, suite, settled, run) for run in runs)
    kept = {"suite": suite.name, "runs": [outcome.to_dict() for outcome in outcomes]}
    write_atomically(suite.home / "results.json", json.dumps(kept, indent=1) + "\n")
    if not any(outcome.is_finished for outcome in outcomes):
        raise UserError(f"{suite.name}: none of {len(outcomes)} runs is finished: {outcomes[0].error}")
    return Results(outcomes=outcomes, level=suite.spec.level)


def _outcome(client: Any, suite: Suite, settled: tracking.Settled, run: SuiteRun) -> Outcome:
    run_id = settled.finished.get(run.spec.run_key)
    if run_id is None:
        known = {entry.run_key: entry.error for entry in suite.progress.snapshot().runs}
        error = known.get(run.spec.run_key) or settled.diverged.get(run.spec.run_key)
        return outcome_of(run, None, status="failed" if error else "missing", error=error or "not trained")
    data = client.get_run(run_id).data
    measures = {name: value for name, value in data.metrics.items() if _is_measure(name)}
    timing = {name: data.metrics.get(name) for name in ("wall_time_s", "step_time_s")}
    return outcome_of(run, measures, device=data.tags.get("isoflop.device"), mlflow_run_id=run_id, **timing)


def _is_measure(name: str) -> bool:
    """Whether `xlstm.capability.measure` made a metric, and not the training around it."""
    head, slash, _ = name.partition("/")
    with_parts = head in ("accuracy", "answer_loss", "domain_loss", "position_loss")
    return with_parts if slash else name in ("loss", "accuracy")


@task(name="report suite", cache_policy=NO_CACHE)
def write_report(suite: Suite, results: Results) -> Path:
    """The page in the suite's folder and in MLflow, with links as artifacts."""
    suite.progress.stage("reporting")
    path = suite.home / "report.html"
    origin = provenance(suite, results)
    write_atomically(path, render(suite.spec, results, origin))
    experiment = tracking.ensure_experiment(suite.state, suite.name)
    judged = claims(suite.spec, results)
    said = sentences(judged)
    note = "\n".join([f"**{suite.name}**: {suite.spec.description}", "", *(f"- {s}" for s in said)])
    finished = sum(outcome.is_finished for outcome in results.outcomes)
    metrics = {
        "runs/finished": float(finished),
        "runs/failed": float(len(results.outcomes) - finished),
        **{f"claims/{claim.key}": float(claim.verdict == "holds") for claim in judged},
    }
    files = [path, suite.home / "results.json"]
    run_id = tracking.log_report(suite.state, experiment, suite.name, files, note=note, metrics=metrics)
    link = report_link(path, experiment, run_id, origin.mlflow_url)
    suite.progress.reported(str(path), link)
    create_link_artifact(link=link, link_text="the report", key=artifact_key("report", suite.name))
    create_markdown_artifact(
        "\n".join(f"- {line}" for line in said),
        key=artifact_key("result", suite.name),
        description=f"Suite {suite.name}",
    )
    return path


def provenance(suite: Suite, results: Results) -> Provenance:
    """Where the suite's numbers come from."""
    devices = sorted({outcome.device for outcome in results.outcomes if outcome.device})
    return Provenance(
        sweep=suite.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source="trained here",
        spec_yaml=yaml.safe_dump(_spec_fields(suite), sort_keys=False, width=100),
        data=_text_facts(suite),
        versions=versions(),
        git_revision=git_revision(),
        wall_time_s=time.time() - suite.started_at,
        device=", ".join(devices) or None,
        mlflow_url=os.environ.get("ISOFLOP_MLFLOW_URL"),
        regenerate=f"isoflop capability {suite.profile}",
    )


def _spec_fields(suite: Suite) -> Any:
    """The profile as it was given."""
    return yaml.safe_load(find_suite(suite.profile).read_text(encoding="utf-8"))


def _text_facts(suite: Suite) -> dict[str, object]:
    """Sizes and content hashes of the domains that were read."""
    facts: dict[str, object] = {}
    for experiment in suite.spec.experiments:
        if not isinstance(experiment.task, TextSource):
            continue
        for name in experiment.task.domains:
            folder = domain_folder(suite.folder, name, experiment.task.max_bytes)
            if (folder / META).exists():
                meta = load_corpus(folder).meta
                facts[name] = (
                    f"{meta.train.documents + meta.validation.documents} files, {meta.train.bytes:,} bytes"
                    " to train"
                    f" on, {meta.validation.bytes:,} held out, content {meta.content_hash[:12]}"
                )
    return facts


def conclude(suite: Suite, results: Results, report: Path) -> PrefectState:
    """The flow's last word: what finished, how the claims stand, and where the report is."""
    finished = sum(outcome.is_finished for outcome in results.outcomes)
    tally = f"{finished} of {len(results.outcomes)} runs finished"
    suite.progress.stage("done", "\n".join([tally, *sentences(claims(suite.spec, results))]))
    return Completed(message=f"{tally}; report: {report}")
