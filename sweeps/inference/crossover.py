"""Where one architecture overtakes the other: the length from which it is faster, with an interval."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.inference.runtime import Kind, Models, work
from sweeps.laws import Estimate
from xlstm.accounting import BytesPerElement
from xlstm.config import ModelConfig

SHORTEST, LONGEST = 16, 2**20
"""Prefill lengths between which a crossing is looked for."""
_LENGTHS = 120

Verdict = Literal["crosses", "always faster", "never faster"]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """One pair of models and one batch, between SHORTEST and LONGEST tokens."""

    kind: Kind
    size: str
    batch_size: int
    challenger: str
    other: str
    verdict: Verdict
    """Of the challenger, by the fit to all points."""
    length: Estimate
    """Tokens; an end at 0 or infinity where so many resamples are always or never faster, nan without a
    crossing."""
    within_data: bool
    """Whether the length lies between the shortest and the longest that was measured of both."""


def find_crossover(
    models: Models,
    kind: Kind,
    configs: tuple[ModelConfig, ModelConfig],
    stored: BytesPerElement,
    *,
    size: str,
    batch_size: int,
    measured: tuple[float, float],
) -> Crossover:
    """The prefill from which `configs[0]` stays faster than `configs[1]`, by the fits and every resample.

    `measured` are the shortest and longest prefills that were measured of both at this batch.
    """
    challenger, other = (config.arch for config in configs)
    lengths = np.unique(np.round(np.geomspace(SHORTEST, LONGEST, _LENGTHS)).astype(int))
    one, two = (
        np.array([work(kind, config, int(T), batch_size, stored) for T in lengths]) for config in configs
    )
    first, second = models[challenger, kind], models[other, kind]
    ahead = np.log(second.predict(two) / first.predict(one))
    value = float(_crossing(lengths, ahead[:, None])[0])
    count = min(len(first.draws), len(second.draws))
    drawn = np.log(second.predict_draws(two)[:, :count] / first.predict_draws(one)[:, :count])
    level = first.level
    # Without interpolation: between a finite length and infinity there is none.
    ends = np.quantile(_crossing(lengths, drawn), [(1 - level) / 2, (1 + level) / 2], method="nearest")
    verdict: Verdict = "crosses"
    if not 0 < value < np.inf:
        verdict = "always faster" if value == 0 else "never faster"
    return Crossover(
        kind=kind,
        size=size,
        batch_size=batch_size,
        challenger=challenger,
        other=other,
        verdict=verdict,
        length=Estimate(
            value=value if verdict == "crosses" else float("nan"),
            low=float(ends[0]),
            high=float(ends[1]),
            level=level,
            method=f"bootstrap of the points of both, {count} resamples",
        ),
        within_data=measured[0] <= value <= measured[1],
    )


def _crossing(lengths: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """The length after which each column (lengths, columns) stays above 0; 0 for all of it, inf for none."""
    log_T = np.log(lengths)
    found = np.empty(ahead.shape[1])
    for j, column in enumerate(ahead.T):
        behind = np.flatnonzero(column <= 0)
        if len(behind) == 0:
            found[j] = 0.0
        elif behind[-1] == len(lengths) - 1:
            found[j] = np.inf
        else:
            i = behind[-1]
            share = -column[i] / (column[i + 1] - column[i])
            found[j] = np.exp(log_T[i] + share * (log_T[i + 1] - log_T[i]))
    return found
