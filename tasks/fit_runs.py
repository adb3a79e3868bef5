"""`isoflop fit`: runs from anywhere, fitted and reported without a sweep and without a service."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from sweeps.laws import ESTIMATORS, LAWS, LawSettings
from sweeps.laws.readers import parse_mapping, read_runs
from sweeps.laws.text import describe
from tasks import results
from tasks.errors import UserError

__all__ = ["FittedSource", "fit_source", "law_settings", "parse_mapping"]

MLFLOW = "mlflow:"


@dataclass(frozen=True, kw_only=True)
class FittedSource:
    """What a fit left behind."""

    text: str
    """The readable table."""
    analysis: Path
    report: Path


def fit_source(
    source: str,
    settings: LawSettings,
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    arch: str | None = None,
    context_length: int | None = None,
    out: Path | None = None,
    command: str = "",
) -> FittedSource:
    """Fit `runs.csv`, `runs.parquet` or `mlflow:EXPERIMENT`; write analysis.json, report.html and
    runs.parquet.

    They go to `out`, by default the folder NAME-laws beside the caller. FitError or UserError names what is
    wrong with the source.
    """
    started = time.time()
    runs = _runs(source, columns or {}, units or {}, where or {}, arch, context_length)
    folder = out or Path(f"{_name(source)}-laws")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    results.save_runs(runs, folder)
    analysis = results.fit(runs, settings, folder)
    origin = results.origin_of(
        runs,
        folder,
        source=f"run table {source}",
        spec_yaml="",
        wall_time_s=time.time() - started,
        regenerate=command,
    )
    report = results.report(runs, analysis, origin, folder)
    return FittedSource(text=describe(analysis), analysis=folder / "analysis.json", report=report)


def law_settings(
    *,
    law: str,
    estimator: str,
    delta: str,
    resamples: int,
    level: float,
    targets: Sequence[float],
    seed: int,
    profile: Sequence[str] = (),
    serve: float = 0.0,
) -> LawSettings:
    """Settings from what a command line gives. UserError names the option that makes no sense."""
    if law not in LAWS or set(LAWS[law].inputs) != {"N", "D"}:
        names = (name for name, form in LAWS.items() if set(form.inputs) == {"N", "D"})
        raise UserError(f"--law {law}: there are {', '.join(names)}")
    if estimator not in ESTIMATORS:
        raise UserError(f"--estimator {estimator}: there are {', '.join(ESTIMATORS)}")
    if bad := [target for target in targets if not target > 0]:
        raise UserError(f"--target {bad[0]:g}: FLOPs are above 0")
    if not serve >= 0:
        raise UserError(f"--serve {serve:g}: tokens are 0 or more")
    return LawSettings(
        law=law,
        estimator=estimator,
        huber_delta=_delta(delta),
        resamples=resamples,
        level=level,
        target_budgets=tuple(targets),
        seed=seed,
        profile=tuple(profile),
        served_tokens=serve,
    )


def _delta(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--delta {text}: a number or auto") from None


def _runs(
    source: str,
    columns: Mapping[str, str],
    units: Mapping[str, str],
    where: Mapping[str, str],
    arch: str | None,
    context_length: int | None,
) -> pl.DataFrame:
    if not source.startswith(MLFLOW):
        return read_runs(source, columns, units, where=where, arch=arch, context_length=context_length)
    if columns or units or where or arch or context_length:
        raise UserError(
            f"{source}: runs in MLflow need no --column, --unit, --where, --arch or --context-length"
        )
    from sweeps.gather import gather_experiment
    from tasks.state import open_state
    from tasks.tracking_db import ensure_tracking_db

    state = open_state()
    ensure_tracking_db(state)
    try:
        return gather_experiment(source.removeprefix(MLFLOW), state.tracking_uri)
    except ValueError as error:
        raise UserError(str(error)) from error


def _name(source: str) -> str:
    """A folder name from a source."""
    stem = source.removeprefix(MLFLOW) if source.startswith(MLFLOW) else Path(source).stem
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "runs"
