"""What comes after the training: run table, fits, report, each a file in the sweep's folder."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import sweeps
from reports import numbers, render
from reports.palette import arch_label
from reports.provenance import Provenance
from sweeps.histories import loss_curves
from sweeps.laws import LawSettings, analyse, from_json, to_json
from sweeps.laws.types import Analysis, Comparison, GroupAnalysis
from sweeps.plan import Plan
from sweeps.predicted import Outcome
from sweeps.run_models import serving_costs
from sweeps.run_table import RUN_TABLE_SCHEMA
from tasks.errors import UserError
from tasks.provenance import git_revision, versions
from xlstm.arch_names import arch_slug
from xlstm.training.files import write_atomically


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """The plan as a table to look at."""
    shown = ("run_name", "N", "D", "budget", "budget_error", "steps", "batch_size", "peak_lr", "estimated_s")
    return plan.table.select(shown).to_dicts()


def save_runs(runs: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Write `runs.parquet`; the table itself comes back. UserError where no run of it is finished."""
    temporary = folder / ".runs.parquet"
    runs.select(list(RUN_TABLE_SCHEMA)).write_parquet(temporary)
    temporary.replace(folder / "runs.parquet")
    if not (runs["status"] == "finished").any():
        reasons = runs["error"].drop_nulls()
        why = f"; {runs['run_name'][0]}: {reasons[0]}" if len(reasons) else ""
        raise UserError(
            f"{folder.name}: none of {runs.height} runs is finished, so there is nothing to fit{why}"
        )
    return runs


def fit(runs: pl.DataFrame, settings: LawSettings, folder: Path) -> Analysis:
    """All fits, kept in `analysis.json`, and read from there while runs, settings and code are the same.

    A fit is a pure function of these three, and takes longer than all else in a sweep whose runs are cached.
    """
    kept, key_file, draws = folder / "analysis.json", folder / "analysis.key", folder / "draws.npz"
    key = _fit_key(runs, settings)
    if all(path.exists() for path in (kept, draws, key_file)) and key_file.read_text(encoding="utf-8") == key:
        return _with_draws(from_json(kept.read_text(encoding="utf-8")), draws)
    key_file.unlink(missing_ok=True)
    serving = serving_costs(runs, settings.served_tokens) if settings.served_tokens else None
    analysis = analyse(runs, settings, serving=serving)
    write_atomically(kept, to_json(analysis))
    _keep_draws(analysis, draws)
    write_atomically(key_file, key)
    return analysis


def _keep_draws(analysis: Analysis, path: Path) -> None:
    """The draws of the laws that answer, by place: the report works with them, and JSON leaves them out."""
    answering = {
        str(i): group.parametric[0].draws for i, group in enumerate(analysis.groups) if group.parametric
    }
    held = io.BytesIO()
    np.savez_compressed(held, **{place: draws for place, draws in answering.items() if draws is not None})  # type: ignore[arg-type]
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(held.getvalue())
    temporary.replace(path)


def _with_draws(analysis: Analysis, path: Path) -> Analysis:
    with np.load(path) as kept:
        draws = dict(kept)
    groups = list(analysis.groups)
    for place, drawn in draws.items():
        first, *others = groups[int(place)].parametric
        groups[int(place)] = replace(groups[int(place)], parametric=(replace(first, draws=drawn), *others))
    return replace(analysis, groups=tuple(groups))


def fit_sources() -> list[Path]:
    """Files whose code a fit runs: the laws, what serving costs by the accounting, and this one."""
    root = Path(sweeps.__file__).parents[1]
    packages = (root / "sweeps" / "laws", root / "xlstm" / "accounting")
    modules = ("sweeps/run_models", "sweeps/serving", "xlstm/config", "xlstm/arch_names", "tasks/results")
    return sorted(
        [source for package in packages for source in package.glob("*.py")]
        + [root / f"{module}.py" for module in modules]
    )


def _fit_key(runs: pl.DataFrame, settings: LawSettings) -> str:
    """SHA-256 of all that a fit depends on: runs, settings, our sources and the libraries below them."""
    content = hashlib.sha256(runs.write_json().encode())
    content.update(repr(settings).encode())
    for source in fit_sources():
        content.update(source.read_bytes())
    for library in ("numpy", "scipy", "polars"):
        content.update(f"{library} {version(library)}".encode())
    return content.hexdigest()


def report(
    runs: pl.DataFrame,
    analysis: Analysis,
    origin: Provenance,
    folder: Path,
    *,
    tracking_uri: str | None = None,
    predicted: Sequence[Outcome] = (),
) -> Path:
    """Render `report.html`, with the loss curves of the runs where they are tracked; its path."""
    path = folder / "report.html"
    curves = None if tracking_uri is None else loss_curves(runs, tracking_uri)
    write_atomically(path, render(runs, analysis, origin, curves=curves, predicted=predicted))
    return path


def origin_of(
    runs: pl.DataFrame, folder: Path, *, source: str, spec_yaml: str, wall_time_s: float, regenerate: str
) -> Provenance:
    """Provenance of a report on these runs, with what is known of their corpus."""
    finished = runs.filter(pl.col("status") == "finished")
    corpus = folder / "corpus.json"
    devices = finished["device"].drop_nulls().unique().sort().to_list()
    return Provenance(
        sweep=folder.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        spec_yaml=spec_yaml,
        data=json.loads(corpus.read_text(encoding="utf-8")) if corpus.exists() else {},
        versions=versions(),
        git_revision=git_revision(),
        wall_time_s=wall_time_s,
        train_flops=float(finished["train_flops"].sum()) or None,
        device=", ".join(devices) or None,
        mlflow_url=os.environ.get("ISOFLOP_MLFLOW_URL"),
        regenerate=regenerate,
    )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many runs of a table are what."""

    finished: int
    failed: int
    first_failure: str | None

    def __str__(self) -> str:
        counted = f"{self.finished} of {self.finished + self.failed} runs finished"
        return f"{counted}, {self.failed} not ({self.first_failure})" if self.failed else counted


def tally(runs: pl.DataFrame) -> Tally:
    """Count the runs of a table by their status."""
    failed = runs.filter(pl.col("status") != "finished")
    first = f"{failed['run_name'][0]}: {failed['error'][0]}" if failed.height else None
    return Tally(finished=runs.height - failed.height, failed=failed.height, first_failure=first)


def note(sweep: str, description: str, runs: pl.DataFrame, analysis: Analysis) -> str:
    """A sweep in MLflow's description field: what it is, what it found, where the report is."""
    lines = [f"- {line}" for line in (str(tally(runs)), *answer(analysis))]
    head = f"**{sweep}**" + (f": {description}" if description else "")
    tail = "The report is the artifact `report.html` of the run of this name; the trainings are its children."
    return "\n".join([head, "", *lines, "", tail])


def found(runs: pl.DataFrame, analysis: Analysis) -> dict[str, float]:
    """What a sweep found as metrics, by architecture and context length: MLflow groups at the slash."""
    count = tally(runs)
    metrics = {"runs/finished": float(count.finished), "runs/failed": float(count.failed)}
    for group in analysis.groups:
        name = f"{arch_slug(group.arch)}-{group.context_length}"
        at = max(group.optima, key=lambda optimum: optimum.budget, default=None)
        if at is not None:
            values = {"budget": at.budget, "N": at.N.value, "D": at.D.value, "loss": at.loss.value}
            metrics |= {f"{name}/optimum_{key}": value for key, value in values.items()}
        if "N" in group.power_laws:
            metrics[f"{name}/exponent_N"] = group.power_laws["N"].exponent.value
    return {key: value for key, value in metrics.items() if np.isfinite(value)}


def answer(analysis: Analysis) -> list[str]:
    """What was found, a line each: the optimum of each group at its largest budget, then the comparisons."""
    optima = [_optimum(group) for group in analysis.groups if group.optima]
    return [*optima, *(_comparison(found) for found in analysis.comparisons)]


def _optimum(group: GroupAnalysis) -> str:
    best = max(group.optima, key=lambda optimum: optimum.budget)
    beyond = ", an extrapolation" if best.is_extrapolated else ""
    return (
        f"{arch_label(group.arch)}, context {group.context_length:,},"
        f" {numbers.flops(best.budget)} FLOPs{beyond}:"
        f" N* {numbers.count(best.N.value)} ({numbers.span(best.N)})"
        f" on D* {numbers.count(best.D.value)} ({numbers.span(best.D)}),"
        f" loss {numbers.loss(best.loss.value)} ({numbers.span(best.loss, numbers.loss)}), by {best.method}"
    )


def _comparison(found: Comparison) -> str:
    lead = -found.loss_difference
    sure = "" if found.decided else ", undecided"
    return (
        f"context {found.context_length:,}, {numbers.flops(found.budget)} FLOPs: {arch_label(found.better)}"
        f" {numbers.loss(lead.value)} nats ({numbers.span(lead, numbers.loss)}) below"
        f" {arch_label(found.other)}{sure}"
    )
