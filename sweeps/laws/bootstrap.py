"""Resamples as integer weights, refitted side by side, each started at the minimum of the full sample.

Pairs are the default: on the Chinchilla points the profile interval is half as wide as it should be, because
the noise is not iid, and a wild bootstrap is invalid near least absolute deviations (a sign flip keeps |r|).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.laws.engine import RESAMPLE_TOLERANCE, Estimator, refit
from sweeps.laws.forms import Array
from sweeps.laws.objective import Problem

MANY_BUDGETS = 10
"""From this many budgets on, pairs are not stratified."""
WANTED_CONVERGED = 0.99
"""Share of resamples whose gradient must vanish before their spread is called an interval."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is drawn with replacement."""

    kind: Literal["pairs", "cluster"] = "pairs"
    labels: Array | None = None
    """(n,): the strata of pairs, within which rows are drawn; or the clusters, which are drawn whole."""
    label: str = ""
    """What a label is: `budget`, `run`."""

    @property
    def n_groups(self) -> int:
        return 0 if self.labels is None else len(np.unique(self.labels))

    def describe(self, resamples: int) -> str:
        if self.kind == "cluster":
            return f"cluster bootstrap by {self.label}, {self.n_groups} clusters, {resamples} resamples"
        strata = f", stratified by {self.label}" if self.labels is not None else ""
        return f"pairs bootstrap, {resamples} resamples{strata}"


def by_budget(budget: Array) -> Scheme:
    """Pairs, stratified where there are few budgets, so that no resample loses one."""
    n_budgets = len(np.unique(budget))
    if 1 < n_budgets < MANY_BUDGETS:
        return Scheme(labels=np.asarray(budget), label="budget")
    return Scheme()


def draw_weights(scheme: Scheme, weights: Array, resamples: int, seed: int) -> Array:
    """(resamples, n) weights. Whole-number `weights` are repeated rows and are drawn as such."""
    rng = np.random.default_rng(seed)
    if scheme.kind == "cluster":
        labels = np.unique(np.asarray(scheme.labels), return_inverse=True)[1]
        n_clusters = int(labels.max()) + 1
        counts = _draw(np.arange(n_clusters), n_clusters, resamples, rng)
        return counts[:, labels] * weights
    whole = bool(np.all(weights == np.round(weights)))
    repeats = weights.astype(int) if whole else np.ones(len(weights), dtype=int)
    strata = np.zeros(len(weights)) if scheme.labels is None else scheme.labels
    drawn = np.zeros((resamples, len(weights)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        drawn += _draw(np.repeat(rows, repeats[rows]), len(weights), resamples, rng)
    return drawn if whole else drawn * weights


def _draw(members: Array, n: int, resamples: int, rng: np.random.Generator) -> Array:
    """How often each of n rows comes up when len(members) of the members are drawn (resamples, n)."""
    chosen = members[rng.integers(len(members), size=(resamples, len(members)))]
    flat = chosen + n * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The minima of all resamples."""

    theta: Array
    """(resamples, p), centred."""
    params: Array
    """(resamples, p), public; a resample that found no minimum is nan."""
    value: Array
    scaled_gradient: Array
    converged: float
    """Share of resamples with a scaled gradient below 1e-7."""
    method: str


def run_bootstrap(
    problem: Problem,
    how: Estimator,
    theta: Array,
    weights: Array,
    scheme: Scheme,
    *,
    resamples: int,
    seed: int,
) -> Bootstrap:
    """Refit `resamples` resamples from theta (p,)."""
    drawn = draw_weights(scheme, weights, resamples, seed)
    found = refit(problem, how, theta, drawn)
    arrived = found.scaled_gradient <= RESAMPLE_TOLERANCE
    with np.errstate(all="ignore"):
        params = problem.law.to_public(found.theta, problem.center)
    params[~arrived] = np.nan
    return Bootstrap(
        theta=found.theta,
        params=params,
        value=found.value,
        scaled_gradient=found.scaled_gradient,
        converged=float(np.mean(arrived)),
        method=scheme.describe(resamples),
    )
