"""From draws to intervals: percentiles, and an honest nan where too many draws have no value."""

import numpy as np

from sweeps.laws.types import Estimate


def percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The central interval that holds `level` of the draws (draws,); nan where a tail is made of failures.

    A draw without a value (nan) may stand for either end. Once such draws could fill a tail, the interval has
    no finite bound on that side, and which side is unknown: both bounds are nan.
    """
    draws = np.asarray(draws, dtype=float)
    tail = (1.0 - level) / 2.0
    finite = draws[np.isfinite(draws)]
    if len(draws) < 2 or len(draws) - len(finite) > tail * len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)


def estimate(value: float, draws: np.ndarray | None, level: float, method: str) -> Estimate:
    """A value with the percentile interval of its draws; without draws the bounds are nan."""
    if draws is None or np.size(draws) == 0:
        return Estimate(value=float(value), level=level, method="no interval")
    low, high = percentiles(draws, level)
    return Estimate(value=float(value), low=low, high=high, level=level, method=method)
