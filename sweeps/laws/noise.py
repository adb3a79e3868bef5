"""How the losses of a grid are redrawn for the intervals of its parabolas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.laws.inputs import Points
from sweeps.laws.parabola import distinct, parabola_coefficients

Resampling = Literal["auto", "pairs", "student"]

PAIRS_NEED = 12
"""Runs in every budget from which `auto` takes pairs. Below, a pairs resample repeats so few sizes that its
vertices scatter too little or not at all; see `_student_draws`."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How losses are redrawn."""

    resampling: Resampling
    rows: int
    rng: np.random.Generator
    sigma: np.ndarray | None
    """(rows, 1): standard deviations of the `student` draws, as shares of the loss; None where there is
    nothing to estimate them from."""
    method: str

    @classmethod
    def of(
        cls, groups: Sequence[Points], resampling: Resampling, rows: int, rng: np.random.Generator
    ) -> "Noise":
        if resampling == "auto":
            resampling = "pairs" if min(len(group) for group in groups) >= PAIRS_NEED else "student"
        if rows == 0:
            return cls(resampling=resampling, rows=0, rng=rng, sigma=None, method="no interval")
        if resampling == "pairs":
            method = f"pairs bootstrap within budgets, {rows} resamples, percentiles"
            return cls(resampling=resampling, rows=rows, rng=rng, sigma=None, method=method)
        squares, freedom = _pooled_residuals(groups)
        if freedom == 0:
            method = "no interval: every parabola passes through its points"
            return cls(resampling=resampling, rows=0, rng=rng, sigma=None, method=method)
        sigma = np.sqrt(squares / rng.chisquare(freedom, size=(rows, 1)))
        method = f"Student draws, residuals pooled over budgets ({freedom} degrees of freedom), {rows} draws"
        return cls(resampling=resampling, rows=rows, rng=rng, sigma=sigma, method=method)

    def redraw(self, group: Points) -> np.ndarray:
        """(rows, n): how often each run of a budget is drawn, or its error of loss."""
        n = len(group)
        if self.resampling == "pairs":
            return self.rng.multinomial(n, np.full(n, 1 / n), size=self.rows)
        sigma = np.empty((0, 1)) if self.sigma is None else self.sigma
        return sigma * group.loss.mean() * self.rng.standard_normal((self.rows, n))

    def coefficients(
        self, x: np.ndarray, y: np.ndarray, weights: np.ndarray, fit: np.ndarray, redrawn: np.ndarray
    ) -> np.ndarray:
        """Resampled coefficients (rows, 3) of one budget."""
        if self.resampling == "pairs":
            return parabola_coefficients(x, y, redrawn * weights)
        return _student_draws(x, weights, fit, redrawn)


def _student_draws(x: np.ndarray, weights: np.ndarray, fit: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Coefficients from their sampling distribution, multivariate t with the pooled degrees of freedom.

    With five to ten sizes a budget, which is what people train, pairs are a poor model of the noise: the
    sizes were chosen, not drawn, and n runs leave n - 3 degrees of freedom that percentiles of pairs do not
    pay for. The draws here are exact for Gaussian noise of ln L, and make the vertex's interval the one of
    Fieller (1954). Coverage of the 95 % interval of N*, 3 simulated budgets of 5, 7, 12 sizes: .93, .95, .95;
    of pairs: none (a tenth of the resamples have no 3 sizes), .90, .93.
    """
    root = np.sqrt(weights)
    inverse = np.linalg.pinv(np.stack([np.ones_like(x), x, x**2], axis=1) * root[:, None])
    return fit + errors @ inverse.T


def _pooled_residuals(groups: Sequence[Points]) -> tuple[float, int]:
    """Sum of squared residuals, as shares of the budget's mean loss, and degrees of freedom.

    Over the budgets that have three sizes. Shares, because the noise of ln L is what budgets have in common.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        if distinct(group.N) < 3:
            continue
        x = np.log(group.N) - np.log(group.N).mean()
        fit = parabola_coefficients(x, group.loss, group.weights[None])[0]
        share = (group.loss - np.polynomial.polynomial.polyval(x, fit)) / group.loss.mean()
        squares += float(np.sum(group.weights * share**2))
        freedom += len(group) - 3
    return squares, freedom
