"""Which law: AICc on ln L residuals beside the error at a held-out top budget.

Runs of one sweep share data, recipe and budget, so the points are dependent and AICc is a ranking, not a
test. Where the two columns disagree, the held-out one is nearer to what a law is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweeps.laws.forms import LAWS, Law
from sweeps.laws.holdout import fit_points, hold_out_top
from sweeps.laws.inputs import Points
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import FitError

CANDIDATES = ("no-E", "tied", "chinchilla", "kaplan", "gamma")
CAVEAT = "points of one sweep are dependent: read AICc as a ranking and let the held-out error decide"


@dataclass(frozen=True, kw_only=True)
class LawScore:
    """One law against the others on the same points."""

    law: str
    n_params: int
    aicc: float
    """Of least squares in ln L, with the noise variance counted as a parameter."""
    aicc_difference: float
    """To the best law; 0 is the best."""
    r2: float
    """Of ln L."""
    top_budget_error: float
    """Mean relative error at the top budget of the law fitted below it; nan where that cannot be done."""
    top_budget_bias: float
    note: str = ""
    """Why a number is missing."""


def compare_laws(
    points: Points, settings: LawSettings, *, laws: Sequence[str] = CANDIDATES
) -> tuple[LawScore, ...]:
    """Every law that the points can carry, best AICc first; the hold-out uses the estimator of `settings`."""
    scores = [_score(points, LAWS[name], settings) for name in laws]
    best = min((score.aicc for score in scores if np.isfinite(score.aicc)), default=float("nan"))
    ranked = [replace(score, aicc_difference=score.aicc - best) for score in scores]
    return tuple(sorted(ranked, key=lambda score: (np.isnan(score.aicc), score.aicc)))


def _score(points: Points, law: Law, settings: LawSettings) -> LawScore:
    notes = []
    try:
        aicc, r2 = log_fit_quality(points, law)
    except FitError as error:
        aicc, r2 = float("nan"), float("nan")
        notes.append(str(error))
    try:
        top = hold_out_top(points, law, settings)
        error_, bias = top.error, top.bias
    except FitError as error:
        error_, bias = float("nan"), float("nan")
        notes.append(str(error))
    return LawScore(
        law=law.name,
        n_params=len(law.params),
        aicc=aicc,
        aicc_difference=float("nan"),
        r2=r2,
        top_budget_error=error_,
        top_budget_bias=bias,
        note="; ".join(notes),
    )


def log_fit_quality(points: Points, law: Law) -> tuple[float, float]:
    """AICc and R^2 of the least-squares fit of ln L.

    AICc = n ln(SSE/n) + 2k + 2k(k+1)/(n-k-1) with k = parameters + 1 (Hurvich and Tsai 1989).
    """
    fitted = fit_points(points, law, LawSettings(estimator="ls-log"))
    sse, log_y = 2.0 * fitted.solution.value, fitted.problem.log_y
    n, k = float(points.weights.sum()), len(law.params) + 1
    if n <= k + 1:
        raise FitError(f"AICc of {law.name} needs more than {k + 1} points, there are {n:g}")
    if sse == 0:
        raise FitError(f"{law.name} leaves no residual, so AICc has nothing to weigh")
    centred = log_y - np.average(log_y, weights=points.weights)
    r2 = 1.0 - sse / float(points.weights @ centred**2)
    return float(n * np.log(sse / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)), r2
