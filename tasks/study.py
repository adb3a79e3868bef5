"""The Prefect tasks of an imported study: its analyses and its report, from the tables of the import.

The grid of parametric fits takes longer than all else; it is kept in `fits.json` and read from there while
the runs and the code are the same.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from prefect.states import State as PrefectState

import sweeps.laws
from reports.provenance import Provenance
from reports.study.page import draw, render, summary
from reports.study.pdf import save_pdf
from sweeps.published import PublishedStudy
from sweeps.study import Study, StudySettings, fittable, make_study
from sweeps.study import parametric as parametric_source
from sweeps.study.data import study_runs
from sweeps.study.parametric import Cell, CellFit, fit_cells
from tasks import tracking
from tasks.importing import PAPER, STUDY, load_study
from tasks.pipeline import Sweep, artifact_key, report_link
from tasks.provenance import git_revision, versions
from xlstm.training.files import write_atomically


def is_study(sweep: Sweep) -> bool:
    """Whether the sweep of this name is the imported study: asked for by name, and not trained here."""
    if sweep.name != PAPER or sweep.table is not None:
        return False
    imported = (sweep.folder / "published" / "runs.parquet").exists()
    return imported or not (sweep.folder / "plan.parquet").exists()


def report_study(sweep: Sweep) -> PrefectState:
    """Analyses and report of the imported study. UserError where nothing is imported."""
    study = analyse(sweep, load(sweep))
    path = write_report(sweep, study)
    sweep.progress.stage("done", "\n".join(summary(study)))
    return Completed(message=f"{summary(study)[0]} Report: {path}")


@task(name="load study", cache_policy=NO_CACHE)
def load(sweep: Sweep) -> PublishedStudy:
    """Runs and measurements, as the import left them."""
    sweep.progress.stage("gathering")
    return load_study(sweep.state)


@task(name="analyse study", cache_policy=NO_CACHE)
def analyse(sweep: Sweep, published: PublishedStudy) -> Study:
    """Every analysis, the grid of parametric fits on all cores."""
    sweep.progress.stage("fitting")
    settings = sweep.spec.laws.settings()
    chosen = StudySettings(
        resamples=settings.resamples, level=settings.level, seed=settings.seed, workers=os.cpu_count() or 1
    )
    fits = kept_fits(published.runs, sweep.folder / "fits.json", workers=chosen.workers)
    return make_study(published.runs, published.inference, chosen, fits=fits)


@task(name="report study", cache_policy=NO_CACHE)
def write_report(sweep: Sweep, study: Study) -> Path:
    """The page and its figures as PDF in the sweep's folder, the page in MLflow too, with links as
    artifacts."""
    sweep.progress.stage("reporting")
    origin = origin_of(study, sweep)
    path = sweep.folder / "report.html"
    write_atomically(path, render(study, origin))
    folder = sweep.folder / "figures"
    folder.mkdir(exist_ok=True)
    for figure in (figure for part in draw(study, origin).values() for figure in part):
        save_pdf(figure, folder / f"{figure.key}.pdf")
    experiment = tracking.ensure_experiment(sweep.state, STUDY)
    run_id = tracking.log_report(sweep.state, experiment, sweep.name, [path])
    link = report_link(path, experiment, run_id, origin.mlflow_url)
    sweep.progress.reported(str(path), link)
    create_link_artifact(link=link, link_text="the report", key=artifact_key("report", sweep.name))
    text = "\n".join(f"- {line}" for line in summary(study))
    create_markdown_artifact(text, key=artifact_key("result", sweep.name), description="The study again")
    return path


def origin_of(study: Study, sweep: Sweep) -> Provenance:
    """Where the study's numbers come from."""
    files = sorted(set(_column(sweep, "source_file")))
    return Provenance(
        sweep=sweep.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=f"{study.runs.height} published runs",
        data={"files": ", ".join(files)},
        versions=versions(),
        git_revision=git_revision(),
        wall_time_s=time.time() - sweep.started_at,
        train_flops=float(study.runs["train_flops"].sum()) or None,
        mlflow_url=os.environ.get("ISOFLOP_MLFLOW_URL"),
        regenerate=sweep.regenerate,
    )


def _column(sweep: Sweep, name: str) -> list[str]:
    table = pl.read_parquet(sweep.folder / "published" / "runs.parquet", columns=[name])
    return [str(value) for value in table[name].drop_nulls()]


def kept_fits(runs: pl.DataFrame, path: Path, *, workers: int = 1) -> Mapping[Cell, CellFit]:
    """The grid of fits of these runs, from `path` where it holds them, else fitted and written there."""
    table = study_runs(runs)
    key = _fits_key(table)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            found = (CellFit(**{**row, "cell": Cell(**row["cell"])}) for row in kept["fits"])
            return {fit.cell: fit for fit in found}
    fits = fit_cells(table, fittable(table), workers=workers)
    rows = [asdict(fit) for fit in fits.values()]
    write_atomically(path, json.dumps({"key": key, "fits": rows}))
    return fits


def _fits_key(table: pl.DataFrame) -> str:
    """SHA-256 of the columns that a fit reads and of the code that fits."""
    read = ["arch", "context_length", "experiment_set", "N", "D", "loss"]
    content = hashlib.sha256(table.select(read).write_json().encode())
    sources = [*Path(sweeps.laws.__file__).parent.glob("*.py"), Path(parametric_source.__file__)]
    for source in sorted(sources):
        content.update(source.read_bytes())
    for library in ("numpy", "scipy"):
        content.update(f"{library} {version(library)}".encode())
    return content.hexdigest()
