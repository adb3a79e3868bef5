"""The questions that a reader of a scaling law should see answered, answered from the data and the fit.

The list follows (Mis)Fitting (Li et al. 2025): hypothesis, set-up, data, fit, validation, release. What the
program cannot know it says it does not know.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from sweeps.laws.engine import START_TOLERANCE
from sweeps.laws.inputs import Points
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import LawFit

UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question and what is known of it."""

    part: str
    question: str
    answer: str


def checklist(
    table: pl.DataFrame,
    points: Points,
    isoflop: IsoflopFit | None,
    fits: Sequence[LawFit],
    settings: LawSettings,
    *,
    flops: str,
    hold_out: str = UNKNOWN,
) -> tuple[Answer, ...]:
    """The checklist of one group; `flops` names how C was counted, `hold_out` sums up the extrapolation
    test."""
    parts: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "law": lambda: _law(isoflop, fits),
        "set-up": lambda: _set_up(table, points, flops),
        "data": lambda: _data(table, points),
        "fit": lambda: _fit(fits, settings),
        "validation": lambda: _validation(fits, isoflop, hold_out),
        "release": lambda: _release(table),
    }
    return tuple(
        Answer(part=part, question=question, answer=answer)
        for part, answers in parts.items()
        for question, answer in answers()
    )


def _law(isoflop: IsoflopFit | None, fits: Sequence[LawFit]) -> Iterator[tuple[str, str]]:
    yield "What form is fitted?", fits[0].formula if fits else "none"
    yield "Is there a second method?", _parabolas(isoflop)
    yield (
        "What does the law predict?",
        "final validation loss in nats per token from N, D (and C for the optimum)",
    )


def _parabolas(isoflop: IsoflopFit | None) -> str:
    if isoflop is None:
        return "no: the runs allow no parabolas"
    usable = len(isoflop.usable)
    return f"IsoFLOP parabolas in ln N at {len(isoflop.parabolas)} budgets, {usable} of them usable"


def _set_up(table: pl.DataFrame, points: Points, flops: str) -> Iterator[tuple[str, str]]:
    yield "How many models?", f"{len(points)} runs, {len(np.unique(points.N))} distinct N"
    yield "What sizes and data?", f"N {_range(points.N)}, D {_range(points.D)}, C {_range(points.C)} FLOPs"
    seeds = _distinct(table, "seed")
    yield "Are runs repeated?", f"{seeds} seed(s)" if seeds else UNKNOWN
    yield "How is N counted?", "column N: all parameters, embedding and head included"
    yield "How is C counted?", flops
    shapes = _distinct(table, "d_model")
    yield "How do shapes change with size?", f"{shapes} widths" if shapes else UNKNOWN
    rates, batches = _distinct(table, "peak_lr"), _distinct(table, "batch_size")
    tuned = f"{rates} peak learning rate(s), {batches} batch size(s)" if rates and batches else UNKNOWN
    yield "Are learning rate and batch size set by size?", tuned


def _data(table: pl.DataFrame, points: Points) -> Iterator[tuple[str, str]]:
    runs = len(np.unique(points.run_key))
    final = "final losses only" if runs == len(points) else f"{len(points)} checkpoints of {runs} runs"
    yield "Which checkpoints?", final
    yield "Which loss?", "column loss: validation, nats per token"
    left_out = table.height - len(points)
    yield "Was anything removed?", f"{left_out} of {table.height} rows, see the flags" if left_out else "no"
    yield "Was anything smoothed?", "no"
    epochs = table["epochs"].max() if "epochs" in table.columns else None
    yield "Were data repeated?", f"up to {epochs:.3g} epochs" if isinstance(epochs, float) else UNKNOWN


def _fit(fits: Sequence[LawFit], settings: LawSettings) -> Iterator[tuple[str, str]]:
    if not fits:
        yield "What is minimised?", "no parametric law was fitted"
        return
    first = fits[0]
    yield "What is minimised?", first.estimator
    zone = first.diagnostics.get("quadratic_zone_share")
    if isinstance(zone, float):
        yield (
            "How are outliers treated?",
            f"{zone:.0%} of the residuals lie in the objective's quadratic zone",
        )
    yield "Are points weighted?", "equally"
    yield "Which optimiser?", "damped Newton on centred logarithms, analytic derivatives"
    starts, agreeing = first.diagnostics.get("n_starts"), first.diagnostics.get("agreeing_starts")
    yield "Which starts?", f"{starts}, of which {agreeing} reached the best minimum"
    gradient = first.diagnostics.get("gradient_norm")
    yield "Did it converge?", f"scaled gradient {gradient:.2g}, tolerance {START_TOLERANCE:g}"
    yield "Are parameters bounded?", "no; amplitudes are positive by their form"
    yield "Which seed?", str(settings.seed)


def _validation(
    fits: Sequence[LawFit], isoflop: IsoflopFit | None, hold_out: str
) -> Iterator[tuple[str, str]]:
    yield "Is extrapolation tested?", hold_out
    method = next(iter(fits[0].params.values())).method if fits else isoflop.method if isoflop else ""
    yield "Are there intervals?", method or "no"
    r2 = fits[0].diagnostics.get("r2") if fits else None
    yield "How good is the fit?", f"R^2 of ln L {r2:.6g}" if isinstance(r2, float) else UNKNOWN


def _release(table: pl.DataFrame) -> Iterator[tuple[str, str]]:
    tracked = "mlflow_run_id" in table.columns and table["mlflow_run_id"].null_count() < table.height
    yield (
        "Are all points available?",
        "run table beside this result" + (", runs in MLflow" if tracked else ""),
    )
    yield "Is the code available?", "the isoflop revision named in the provenance"


def _range(values: np.ndarray) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _distinct(table: pl.DataFrame, column: str) -> int:
    return table[column].drop_nulls().n_unique() if column in table.columns else 0
