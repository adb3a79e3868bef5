"""Power laws of the optima against compute: least-squares lines in the logarithms, one for each resample."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import chdtri, stdtrit

from sweeps.laws.intervals import estimate
from sweeps.laws.types import Estimate, FitError, Flag, PowerLaw

OFFSET_NEEDS = 4
"""Budgets from which a loss law has an offset, one more than it has parameters. Without an offset it falls
too fast beyond the grid."""

_CROOKED = 0.99
"""Probability at which chi-squared calls the optima off their line."""

_OFFSETS = np.linspace(0.0, 0.98, 99)
"""Trial offsets as shares of the lowest loss."""


@dataclass(frozen=True, kw_only=True)
class PowerLawFit:
    """A power law and the lines of its resamples."""

    law: PowerLaw
    intercepts: np.ndarray
    """(resamples,), at C_ref."""
    exponents: np.ndarray
    offsets: np.ndarray

    def draws_at(self, C: float) -> np.ndarray:
        """The law's value at a budget in every resample: (resamples,)."""
        return self.offsets + np.exp(self.intercepts + self.exponents * np.log(C / self.law.C_ref))


def fit_power_law(
    quantity: Literal["N", "D", "loss"],
    C: np.ndarray,
    values: np.ndarray,
    draws: np.ndarray,
    *,
    level: float = 0.95,
    method: str = "",
) -> PowerLawFit:
    """Line of ln(values) on ln C; for a loss at `OFFSET_NEEDS` budgets, of ln(values - offset) with the
    offset that leaves the smallest residual in loss.

    `values` (budgets,); `draws` (resamples, budgets) with nan where a resample has no optimum at a budget:
    its line goes through the others. Raises `FitError` for fewer than two distinct budgets.
    """
    if len(np.unique(C)) < 2:
        raise FitError(f"a power law of {quantity} needs 2 budgets, got {len(np.unique(C))}")
    C_ref = float(np.exp(np.log(C).mean()))
    c = np.log(C / C_ref)
    line = _saturating if quantity == "loss" and len(C) >= OFFSET_NEEDS else straight_lines
    intercept, exponent, offset = (float(part[0]) for part in line(c, np.asarray(values, float)[None]))
    drawn = line(c, draws)
    fitted = offset + np.exp(intercept + exponent * c)
    law = PowerLaw(
        quantity=quantity,
        exponent=estimate(exponent, drawn[1], level, method),
        intercept=intercept,
        C_ref=C_ref,
        offset=offset,
        n_budgets=len(C),
        flags=(
            *_lost_draws(quantity, drawn[1]),
            *_without_offset(quantity, len(C)),
            *_crooked(quantity, values / fitted - 1.0, draws / np.asarray(values), 3 if offset else 2),
        ),
    )
    if not offset and len(C) > 2:
        residuals = np.log(np.asarray(values, float) / fitted)
        law = replace(law, from_residuals=_student(exponent, c, residuals, level))
    return PowerLawFit(law=law, intercepts=drawn[0], exponents=drawn[1], offsets=drawn[2])


def _lost_draws(quantity: str, exponents: np.ndarray) -> tuple[Flag, ...]:
    lost = int(np.sum(~np.isfinite(exponents)))
    if not lost:
        return ()
    message = f"{lost} of {len(exponents)} resamples left fewer than 2 budgets with an optimum of {quantity}"
    return (Flag(code="resamples-lost", severity="warning", message=message),)


def _student(exponent: float, c: np.ndarray, residuals: np.ndarray, level: float) -> Estimate:
    """The slope of a least-squares line with its classical interval; c is centred."""
    freedom = len(c) - 2
    error = np.sqrt(residuals @ residuals / freedom / (c @ c))
    half = float(stdtrit(freedom, (1 + level) / 2) * error)
    method = f"Student, {freedom} degrees of freedom of the budgets around the line"
    return Estimate(value=exponent, low=exponent - half, high=exponent + half, level=level, method=method)


def _crooked(quantity: str, misfit: np.ndarray, draws: np.ndarray, params: int) -> tuple[Flag, ...]:
    """Whether the values (budgets,) leave the line by more than their draws (resamples, budgets) scatter."""
    freedom = len(misfit) - params
    if freedom < 1 or len(draws) < 2:
        return ()
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.subtract(*np.nanquantile(draws, [0.841, 0.159], axis=0)) / 2
        excess = np.nansum((misfit / spread) ** 2) / freedom
    if not excess > chdtri(freedom, 1 - _CROOKED) / freedom:
        return ()
    message = (
        f"the optima of {quantity} leave their power law by {np.sqrt(excess):.1f} times what the noise within"
        " budgets explains: the law's interval is too narrow"
    )
    return (Flag(code="power-law-misfit", severity="warning", message=message),)


def _without_offset(quantity: str, budgets: int) -> tuple[Flag, ...]:
    if quantity != "loss" or budgets >= OFFSET_NEEDS:
        return ()
    message = (
        f"{budgets} budgets cannot show the irreducible loss: beyond the grid this loss law falls too fast"
    )
    return (Flag(code="no-offset", severity="info", message=message),)


def _lines(c: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope of the rows of y (..., budgets) on c, skipping nan; nan where fewer than two are
    left."""
    seen = np.isfinite(y)
    count = seen.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_c = (seen * c).sum(axis=-1) / count
        mean_y = np.where(seen, y, 0.0).sum(axis=-1) / count
        deviation = np.where(seen, c - mean_c[..., None], 0.0)
        slope = (deviation * np.where(seen, y, 0.0)).sum(axis=-1) / (deviation**2).sum(axis=-1)
        slope = np.where(count >= 2, slope, np.nan)
    return mean_y - slope * mean_c, slope


def straight_lines(c: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intercepts, slopes and offsets (all 0) of ln(values) (rows, points) on c (points,); nan values are
    skipped."""
    with np.errstate(invalid="ignore", divide="ignore"):
        intercept, slope = _lines(c, np.log(values))
    return intercept, slope, np.zeros(len(values))


def _saturating(c: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The offset by a scan over its share of the lowest value, then by golden sections around the best
    share."""
    with np.errstate(invalid="ignore"):
        lowest = np.fmin.reduce(values, axis=1)
    scan = np.stack([_misfit(c, values, share * lowest) for share in _OFFSETS])
    best = np.clip(scan.argmin(axis=0), 1, len(_OFFSETS) - 2)
    low, high = _OFFSETS[best - 1], _OFFSETS[best + 1]
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        rises = _misfit(c, values, left * lowest) <= _misfit(c, values, right * lowest)
        low, high = np.where(rises, low, left), np.where(rises, right, high)
    offset = (low + high) / 2 * lowest
    with np.errstate(invalid="ignore", divide="ignore"):
        intercept, slope = _lines(c, np.log(values - offset[:, None]))
    return intercept, slope, offset


def _misfit(c: np.ndarray, values: np.ndarray, offset: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        intercept, slope = _lines(c, np.log(values - offset[:, None]))
        predicted = offset[:, None] + np.exp(intercept[:, None] + slope[:, None] * c)
        return np.nansum((values - predicted) ** 2, axis=1)
