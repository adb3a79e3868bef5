"""Loss against compute at a constant number of tokens a parameter (PAPER 3.3): lines of ln L on ln C.

The repository prints the variance of a slope as its standard error. Here an interval is Student's, with the
n - 2 degrees of freedom that n runs leave; the noise it sees is the runs' own departure from the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import fdtrc, stdtrit

from sweeps.laws import Estimate
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import TOKENPARAM


@dataclass(frozen=True, kw_only=True)
class Line:
    """ln L = intercept + slope ln C over the runs of one architecture at one token/parameter ratio."""

    arch: str
    ratio: float
    n: int
    slope: float
    intercept: float
    variance: float
    """Of the slope: what the repository prints as `stderr`. nan for two runs."""
    mean_lnC: float
    spread: float
    """Sum of squares of ln C around its mean."""
    residual_variance: float
    C_low: float
    C_high: float

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.variance))

    def interval(self, level: float = 0.95) -> Estimate:
        """The slope with Student's interval; no interval for two runs."""
        if self.n < 3:
            return Estimate(value=self.slope, level=level, method="no interval: two runs draw the line")
        half = float(stdtrit(self.n - 2, (1 + level) / 2)) * self.standard_error
        method = f"Student, {self.n - 2} degrees of freedom"
        return Estimate(
            value=self.slope, low=self.slope - half, high=self.slope + half, level=level, method=method
        )

    def predict(self, C: float) -> tuple[float, float]:
        """ln L of the line at C, and the variance of that mean."""
        x = np.log(C) - self.mean_lnC
        middle = self.intercept + self.slope * self.mean_lnC
        return float(middle + self.slope * x), self.residual_variance * (1 / self.n + x**2 / self.spread)


def fit_lines(runs: pl.DataFrame, *, flops: str = "train_flops") -> tuple[Line, ...]:
    """A line for each architecture and preset ratio with two runs or more, ascending.

    `flops` names the column that counts compute; an architecture for which it is empty has no line.
    """
    table = runs.filter(
        (pl.col("experiment_set") == TOKENPARAM) & pl.col("preset_token_param_ratio").is_not_null()
    ).drop_nulls(flops)
    lines = []
    parts = table.partition_by(["arch", "preset_token_param_ratio"], as_dict=True)
    for (arch, ratio), part in sorted(parts.items()):
        C = part[flops].to_numpy()
        if len(np.unique(C)) >= 2:
            lines.append(_line(str(arch), float(ratio), np.log(C), np.log(part["loss"].to_numpy())))
    return tuple(lines)


def _line(arch: str, ratio: float, x: np.ndarray, y: np.ndarray) -> Line:
    mean, n = x.mean(), len(x)
    spread = float(np.sum((x - mean) ** 2))
    slope = float((x - mean) @ y / spread)
    intercept = float(y.mean() - slope * mean)
    residual = float(np.sum((y - intercept - slope * x) ** 2) / (n - 2)) if n > 2 else float("nan")
    return Line(
        arch=arch,
        ratio=ratio,
        n=n,
        slope=slope,
        intercept=intercept,
        variance=residual / spread,
        mean_lnC=float(mean),
        spread=spread,
        residual_variance=residual,
        C_low=float(np.exp(x.min())),
        C_high=float(np.exp(x.max())),
    )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Whether the lines of one architecture share a slope: F-test of one slope against one for each ratio."""

    arch: str
    common_slope: Estimate
    F: float
    freedom: tuple[int, int]
    p_value: float


def parallel_test(lines: Sequence[Line], arch: str, level: float = 0.95) -> Parallel | None:
    """Analysis of covariance over the ratios with three runs or more; None with fewer than two of them."""
    used = [line for line in lines if line.arch == arch and line.n >= 3]
    if len(used) < 2:
        return None
    freedom = sum(line.n - 2 for line in used)
    within = sum(line.residual_variance * (line.n - 2) for line in used)
    spread = sum(line.spread for line in used)
    common = sum(line.slope * line.spread for line in used) / spread
    between = sum(line.spread * (line.slope - common) ** 2 for line in used)
    k = len(used) - 1
    F = (between / k) / (within / freedom)
    # The interval of the shared slope pays for the lines' disagreement as well as for their scatter.
    pooled = (within + between) / (freedom + k)
    half = float(stdtrit(freedom + k, (1 + level) / 2) * np.sqrt(pooled / spread))
    method = f"Student, one slope for {len(used)} ratios, {freedom + k} degrees of freedom"
    slope = Estimate(value=common, low=common - half, high=common + half, level=level, method=method)
    return Parallel(
        arch=arch, common_slope=slope, F=F, freedom=(k, freedom), p_value=float(fdtrc(k, freedom, F))
    )


@dataclass(frozen=True, kw_only=True)
class RatioGap:
    """The xLSTM against the Transformer at equal compute and one token/parameter ratio."""

    ratio: float
    C: float
    """Geometric middle of the computes that both cover."""
    log_loss_gap: Estimate
    """ln L of the xLSTM minus ln L of the Transformer; below 0 the xLSTM is better."""
    slope_difference: Estimate
    """Slope of the xLSTM minus that of the Transformer."""


def ratio_gaps(lines: Sequence[Line], level: float = 0.95) -> tuple[RatioGap, ...]:
    """Where both architectures have three runs or more at a ratio; Welch's degrees of freedom."""
    by_key = {(line.arch, line.ratio): line for line in lines if line.n >= 3}
    gaps = []
    for ratio in sorted({line.ratio for line in lines}):
        one, two = by_key.get((XLSTM, ratio)), by_key.get((TRANSFORMER, ratio))
        if one is None or two is None:
            continue
        C = float(np.sqrt(max(one.C_low, two.C_low) * min(one.C_high, two.C_high)))
        (a, var_a), (b, var_b) = one.predict(C), two.predict(C)
        gaps.append(
            RatioGap(
                ratio=ratio,
                C=C,
                log_loss_gap=_welch(a - b, (var_a, one.n - 2), (var_b, two.n - 2), level),
                slope_difference=_welch(
                    one.slope - two.slope, (one.variance, one.n - 2), (two.variance, two.n - 2), level
                ),
            )
        )
    return tuple(gaps)


def _welch(value: float, one: tuple[float, int], two: tuple[float, int], level: float) -> Estimate:
    total = one[0] + two[0]
    freedom = total**2 / (one[0] ** 2 / one[1] + two[0] ** 2 / two[1])
    half = float(stdtrit(freedom, (1 + level) / 2) * np.sqrt(total))
    method = f"Welch, {freedom:.1f} degrees of freedom"
    return Estimate(value=value, low=value - half, high=value + half, level=level, method=method)
