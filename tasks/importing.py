"""Runs that were trained elsewhere, into MLflow and a run table: published studies, CSV and Parquet.

An import can be repeated, and cut off and repeated: what is there already stays as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from sweeps.laws.readers import parse_mapping, read_runs
from sweeps.published import PickleRefused, PublishedError, PublishedStudy, read_published
from sweeps.published.merge import superseded_keys
from sweeps.published.rows import STUDY
from sweeps.published.schema import CURVES_SCHEMA, INFERENCE_SCHEMA, PUBLISHED_SCHEMA
from tasks.errors import UserError
from tasks.import_tracking import Progress, Written, write_runs
from tasks.state import State
from tasks.tracking_db import ensure_tracking_db

__all__ = ["PAPER", "STUDY", "Imported", "import_runs", "import_study", "load_study", "parse_mapping"]

PAPER = "paper"
"""The sweep whose folder holds their tables."""
TABLES = {"runs": PUBLISHED_SCHEMA, "curves": CURVES_SCHEMA, "inference": INFERENCE_SCHEMA}


def _silent(message: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import found and did."""

    study: PublishedStudy
    """All that has been imported into the experiment, from this path and earlier ones."""
    written: Written
    folder: Path
    experiment: str


def import_study(path: Path, state: State, progress: Progress = _silent) -> Imported:
    """Put the published runs of *xLSTM Scaling Laws* into MLflow and into `sweeps/paper/published`.

    UserError where the path holds none, or one file that is refused.
    """
    try:
        found = read_published(path, lambda message: progress(message, 0, 0))
    except (PublishedError, PickleRefused) as error:
        raise UserError(str(error)) from error
    return _import(found, state, STUDY, PAPER, progress, keep_earlier=True)


def import_runs(
    path: Path,
    state: State,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    arch: str | None = None,
    context_length: int | None = None,
    progress: Progress = _silent,
) -> Imported:
    """Put the runs of a CSV or Parquet file into the MLflow experiment `name`, by default the file's name.

    The experiment then holds the runs of this file; those that only an earlier version had are deleted there.
    Columns and units as in `isoflop fit`. FitError or UserError names what is wrong with the file.
    """
    table = read_runs(path, columns, units, arch=arch, context_length=context_length)
    name = name or path.stem
    if name in (STUDY, PAPER):
        raise UserError(f"--name {name}: belongs to `isoflop import {STUDY}`; choose another")
    origin = {"source_file": path.name, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rows = [{**row, **origin, "run_set": name} for row in table.iter_rows(named=True)]
    for number, row in enumerate(rows):
        row["run_key"] = row["run_key"] or _content(row | {"row": number})
        row["run_name"] = row["run_name"] or f"{name}-{number + 1}"
    runs = pl.DataFrame(rows, schema=PUBLISHED_SCHEMA, strict=False)
    repeated = runs.filter(pl.col("run_key").is_duplicated())
    if repeated.height:
        raise UserError(f"{path}: run_key {repeated['run_key'][0]} stands there twice; a key names one run")
    study = PublishedStudy(
        runs=runs,
        curves=pl.DataFrame(schema=CURVES_SCHEMA),
        inference=pl.DataFrame(schema=INFERENCE_SCHEMA),
        notes=(),
    )
    return _import(study, state, name, name, progress, keep_earlier=False)


def load_study(state: State, sweep: str = PAPER) -> PublishedStudy:
    """What has been imported into a sweep's folder. UserError where nothing has."""
    folder = _folder(state, sweep)
    if not (folder / "runs.parquet").exists():
        raise UserError(f"{folder}: nothing is imported: run `isoflop import {STUDY} PATH` first")
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    return PublishedStudy(**tables, notes=())


def _import(
    found: PublishedStudy,
    state: State,
    experiment: str,
    sweep: str,
    progress: Progress,
    *,
    keep_earlier: bool,
) -> Imported:
    folder = _folder(state, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state.lock(f"import-{sweep}"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{experiment}: another import is at work on it; wait for it") from error
    with lock:
        earlier = _earlier(folder)
        study = _joined(found, earlier) if earlier and keep_earlier else found
        known = set(earlier["runs"]["run_key"]) if earlier else set()
        progress("opening MLflow", 0, 0)
        ensure_tracking_db(state)
        written = write_runs(study, state, experiment, known - set(study.runs["run_key"]), progress)
        ids = pl.DataFrame(written.run_ids, schema=["run_key", "mlflow_run_id"], orient="row")
        runs = (
            study.runs.drop("mlflow_run_id")
            .join(ids, on="run_key", how="left", maintain_order="left")
            .with_columns(mlflow_experiment_id=pl.lit(written.experiment_id))
            .select(list(PUBLISHED_SCHEMA))
        )
        study = replace(study, runs=runs)
        for name in TABLES:
            temporary = folder / f".{name}.parquet"
            getattr(study, name).write_parquet(temporary)
            temporary.replace(folder / f"{name}.parquet")
    return Imported(study=study, written=written, folder=folder, experiment=experiment)


def _earlier(folder: Path) -> dict[str, pl.DataFrame]:
    """The tables of earlier imports; none where another version wrote them, whose columns are not ours."""
    if not all((folder / f"{name}.parquet").exists() for name in TABLES):
        return {}
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    return tables if all(dict(tables[name].schema) == schema for name, schema in TABLES.items()) else {}


def _joined(found: PublishedStudy, earlier: Mapping[str, pl.DataFrame]) -> PublishedStudy:
    """The new import and what earlier ones brought that it does not hold.

    A run of both is the new one, unless only the earlier had a curve.
    """
    with_curve = set(found.curves["run_key"].unique())
    had_curve = set(earlier["curves"]["run_key"].unique())
    old = set(earlier["runs"]["run_key"])
    new = {key for key in found.runs["run_key"] if key in with_curve or key not in old & had_curve}
    runs = pl.concat([_of(found.runs, new), _of(earlier["runs"], old - new)])
    stale = superseded_keys(runs)
    new, kept = new - stale, old - new - stale
    return replace(
        found,
        runs=_of(runs, new | kept).sort("run_set", "N", "D", "run_name", "run_key", maintain_order=True),
        curves=pl.concat([_of(found.curves, new), _of(earlier["curves"], kept)]),
        inference=found.inference if found.inference.height else earlier["inference"],
    )


def _of(table: pl.DataFrame, keys: set[str]) -> pl.DataFrame:
    return table.filter(pl.col("run_key").is_in(list(keys)))


def _folder(state: State, sweep: str) -> Path:
    return state.sweep_dir(sweep) / "published"


def _content(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()
