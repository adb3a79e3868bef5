"""How far the answer depends on choices that are nobody's to make: objective, subset of runs, what N
counts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sweeps.laws.engine import RESAMPLE_TOLERANCE, estimator, pose, refit
from sweeps.laws.fitting import find_law
from sweeps.laws.forms import Law
from sweeps.laws.holdout import columns_of, fit_points
from sweeps.laws.inputs import Points
from sweeps.laws.optima import optima
from sweeps.laws.settings import LawSettings

OBJECTIVES = ("huber-log", "ls-log", "vp")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The law under one combination of choices."""

    objective: str
    subset: str
    size: str
    """What N counts: `total`, `non-embedding`."""
    n_points: int
    params: dict[str, float]
    a: float
    """N* ~ C^a under C = 6 N D; nan where the law has no such exponent."""
    N: float
    """N* at the target budget under C = 6 N D, in the units of `size`."""
    D: float
    loss: float
    note: str = ""
    """Why numbers are missing."""


def sensitivity(
    sizes: Mapping[str, Points],
    settings: LawSettings,
    target: float,
    objectives: tuple[str, ...] = OBJECTIVES,
) -> tuple[Variant, ...]:
    """Every objective on every subset under every definition of N; `sizes` holds the same runs by that
    definition.

    All variants use C = 6 N D, so that only the named choice differs. Each starts at the minimum of the
    settings' own objective on all runs; one that reaches no minimum from there, or has too few runs, says so.
    """
    law = find_law(settings.law)
    start = fit_points(next(iter(sizes.values())), law, settings).solution.theta
    return tuple(
        _variant(points, law, start, replace(settings, estimator=objective), name, size, target)
        for size, whole in sizes.items()
        for name, points in subsets(whole)
        for objective in objectives
    )


def subsets(points: Points) -> Iterator[tuple[str, Points]]:
    """All runs, then leaving out an end at a time: what an honest author would try and one with a wish would
    pick."""
    yield "all", points
    budgets = points.budgets
    if len(budgets) > 2:
        yield "without the largest budget", points.take(points.budget < budgets[-1])
        yield "without the smallest budget", points.take(points.budget > budgets[0])
    ratio = np.log(points.D / points.N)
    middle = np.abs(ratio - np.median(ratio))
    yield "without the widest tenth of D/N", points.take(middle <= np.quantile(middle, 0.9))
    order = np.argsort(points.loss, kind="stable")
    few = max(1, len(points) // 50)
    yield f"without the {few} lowest loss(es)", points.take(np.sort(order[few:]))


def _variant(
    points: Points,
    law: Law,
    start: np.ndarray,
    settings: LawSettings,
    subset: str,
    size: str,
    target: float,
) -> Variant:
    nan = float("nan")
    empty = Variant(
        objective=settings.estimator,
        subset=subset,
        size=size,
        n_points=len(points),
        params=dict.fromkeys(law.params, nan),
        a=nan,
        N=nan,
        D=nan,
        loss=nan,
    )
    if len(points) <= len(law.params):
        return replace(empty, note=f"{len(points)} runs for {len(law.params)} parameters")
    params = _refitted(points, law, start, settings)
    if params is None:
        return replace(empty, note="no minimum near that of all runs")
    best = optima(law, params, [target])
    derived = law.derived(params[None])
    return replace(
        empty,
        params=dict(zip(law.params, map(float, params), strict=True)),
        a=float(derived["a"][0]) if "a" in derived else nan,
        N=float(best.N[0, 0]),
        D=float(best.D[0, 0]),
        loss=float(best.loss[0, 0]),
    )


def _refitted(points: Points, law: Law, start: np.ndarray, settings: LawSettings) -> np.ndarray | None:
    """Public parameters (p,) of the minimum that a descent from `start`, centred, reaches."""
    delta = 1e-3 if isinstance(settings.huber_delta, str) else settings.huber_delta
    how = estimator(settings.estimator, delta)
    problem = pose(law, columns_of(points), points.loss, how.objective, points.weights)
    found = refit(problem, how, start, points.weights[None])
    if not found.scaled_gradient[0] <= RESAMPLE_TOLERANCE:
        return None
    return law.to_public(found.theta, problem.center)[0]
