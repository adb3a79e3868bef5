"""The hold-out runs of a sweep: predicted on disk, with the time, before the first of their steps."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweeps.gather import gather
from sweeps.laws.types import Analysis
from sweeps.plan import Plan, PlannedRun
from sweeps.predicted import Outcome, Prediction, hold_out_runs, predict_run
from sweeps.spec import SweepSpec
from tasks.state import State
from xlstm.data import Corpus
from xlstm.run_spec import run_spec_from_dict
from xlstm.training.files import write_atomically
from xlstm.training.job import ATTEMPT

FILE = "holdout.json"


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Planned runs with what was said of each; in the same order."""

    runs: tuple[PlannedRun, ...]
    predictions: tuple[Prediction, ...]


def make_hold_out(
    spec: SweepSpec, analysis: Analysis, corpus: Corpus, vocab_size: int, state: State
) -> HoldOut:
    """Plan and predict the hold-out runs, and write both down before anything of them is trained.

    What was said of a run that has begun stays said, whatever its law says by now.
    """
    folder = state.sweep_dir(spec.name)
    kept = {run.run_key: (run, said) for run, said in _pairs(read_hold_out(folder)) if _has_begun(state, run)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    runs, predictions = [], []
    for planned in hold_out_runs(spec, analysis, corpus.spec(), vocab_size):
        same_place = (_place(run) == _place(planned) for run, _ in kept.values())
        if not any(same_place):
            said = predict_run(planned, analysis, now)
            kept[planned.run_key] = (replace(planned, said_before=said.tags), said)
    for run, said in kept.values():
        runs.append(run)
        predictions.append(said)
    made = HoldOut(runs=tuple(runs), predictions=tuple(predictions))
    write_atomically(folder / FILE, json.dumps(_to_dict(made), indent=1))
    return made


def read_hold_out(folder: Path) -> HoldOut:
    """What was planned and predicted; nothing where there is no file of it."""
    path = folder / FILE
    if not path.exists():
        return HoldOut(runs=(), predictions=())
    entries = json.loads(path.read_text(encoding="utf-8"))
    runs = (_run_from_dict(entry["run"]) for entry in entries)
    predictions = (Prediction.from_dict(entry["prediction"]) for entry in entries)
    return HoldOut(runs=tuple(runs), predictions=tuple(predictions))


def outcomes(spec: SweepSpec, state: State) -> list[Outcome]:
    """The predictions of a sweep beside what its tracker holds of their runs."""
    made = read_hold_out(state.sweep_dir(spec.name))
    if not made.runs:
        return []
    table = gather(Plan(spec=spec, runs=made.runs).table, state.tracking_uri)
    rows = {row["run_key"]: row for row in table.iter_rows(named=True)}
    return [_outcome(said, rows[said.run_key]) for said in made.predictions]


def _outcome(said: Prediction, row: dict[str, Any]) -> Outcome:
    finished = row["status"] == "finished"
    return Outcome(
        prediction=said, observed=row["loss"] if finished else None, status=row["status"], error=row["error"]
    )


def _pairs(made: HoldOut) -> Sequence[tuple[PlannedRun, Prediction]]:
    return list(zip(made.runs, made.predictions, strict=True))


def _place(run: PlannedRun) -> tuple[str, int, float]:
    return run.arch, run.spec.context_length, run.budget


def _has_begun(state: State, run: PlannedRun) -> bool:
    """An attempt's MLflow run is made before its first step."""
    return (state.run_dir(run.run_key) / ATTEMPT).exists()


def _to_dict(made: HoldOut) -> list[dict[str, Any]]:
    return [{"prediction": said.to_dict(), "run": asdict(run)} for run, said in _pairs(made)]


def _run_from_dict(fields: dict[str, Any]) -> PlannedRun:
    return PlannedRun(**{**fields, "spec": run_spec_from_dict(fields["spec"])})
