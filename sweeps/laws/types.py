"""What a fit returns. Plain frozen data: results carry their intervals, their diagnostics and their flags."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

Severity = Literal["info", "warning", "error"]


class FitError(ValueError):
    """The data cannot support the fit that was asked for; the message says why and what would help."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something that a reader of the numbers must know."""

    code: str
    """Stable, kebab-case: `vertex-outside-grid`, `inverted-parabola`, `few-points`, `unidentified`."""
    severity: Severity
    message: str
    """One sentence that names the culprit (budget, parameter, run) and, where there is one, the cure."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval. `low` and `high` are nan where no interval could be computed."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    level: float = 0.95
    method: str = ""
    """How the interval was obtained: `pairs bootstrap, 4000 resamples, stratified by budget`."""

    def __neg__(self) -> "Estimate":
        """The same the other way round, as of a difference."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """Loss against ln N at one budget: loss = c0 + c1 x + c2 x^2 with x = ln N - center."""

    budget: float
    """Nominal FLOPs; the mean realised FLOPs of the group stand in `train_flops`."""
    train_flops: float
    center: float
    c0: float
    c1: float
    c2: float
    n_points: int
    N_low: float
    N_high: float
    """The range of N that the grid covers."""
    N: Estimate
    D: Estimate
    loss: Estimate
    """The optimum: N*, D*, L* at this budget."""
    rms_residual: float
    predicted_bias: float
    """Expected error of ln N* from fitting a parabola to this very grid; nan until a surface is known."""
    usable: bool
    """Convex, and the vertex is inside the grid. Only usable parabolas enter the power laws."""
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = exp(intercept) * (C / C_ref)^exponent, plus `offset` for a loss law."""

    quantity: Literal["N", "D", "loss"]
    exponent: Estimate
    intercept: float
    C_ref: float
    offset: float = 0.0
    n_budgets: int = 0
    flags: tuple[Flag, ...] = ()
    from_residuals: Estimate | None = None
    """The exponent with Student's interval from the optima's own departures from the line: wide for few
    budgets, and honest where the line is not straight. None for a loss law with an offset and below three
    budgets."""

    def __call__(self, C: np.ndarray | float) -> np.ndarray:
        """Value at the budgets C, in FLOPs."""
        ratio = np.asarray(C, dtype=float) / self.C_ref
        return self.offset + np.exp(self.intercept + self.exponent.value * np.log(ratio))


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """One law fitted by one estimator."""

    law: str
    """Name of the form: `chinchilla`, `gamma`, `kaplan`."""
    formula: str
    """The form in words a reader knows: `L = E + A N^-alpha + B D^-beta`."""
    estimator: str
    """What was minimised, in full: `sum of Huber(1e-3) of ln L residuals`."""
    params: dict[str, Estimate]
    objective: float
    n_points: int
    diagnostics: dict[str, float | int | str]
    """`gradient_norm`, `agreeing_starts`, `runner_up_excess`, `condition`, `quadratic_zone_share`, `r2`..."""
    residuals: np.ndarray
    """ln L observed minus ln L predicted, in the order of the rows used."""
    flags: tuple[Flag, ...] = ()
    derived: dict[str, Estimate] = field(default_factory=dict)
    """What follows from the parameters alone, with intervals from the same resamples: the exponents `a`,
    `b`."""
    clustered: dict[str, Estimate] = field(default_factory=dict)
    """The same keys as `params` and `derived` with the intervals of the cluster bootstrap; empty where
    none."""
    draws: np.ndarray | None = field(default=None, repr=False)
    """(resamples, parameters): the bootstrap draws, columns in the order of `params`."""
    cluster_draws: np.ndarray | None = field(default=None, repr=False)
    """The same of the cluster bootstrap."""


@dataclass(frozen=True, kw_only=True)
class OptimumPrediction:
    """N*, D* and L* at one budget, with intervals computed inside the resamples."""

    budget: float
    N: Estimate
    D: Estimate
    loss: Estimate
    method: str
    """`isoflop parabolas`, `chinchilla, Huber`."""
    extrapolation: float
    """Budget over the largest fitted budget; 1 or less is interpolation."""

    @property
    def is_extrapolated(self) -> bool:
        """Beyond the fitted budgets, by more than their rounding."""
        return self.extrapolation > 1.001


@dataclass(frozen=True, kw_only=True)
class GroupAnalysis:
    """All fits of one architecture at one context length."""

    arch: str
    context_length: int
    n_runs: int
    parabolas: tuple[Parabola, ...]
    power_laws: dict[str, PowerLaw]
    """Keys N, D, loss; a law that the data cannot support is absent, and a flag says why."""
    parametric: tuple[LawFit, ...]
    """The first is the one that answers; the others stand beside it."""
    optima: tuple[OptimumPrediction, ...]
    """At the budgets of the grid and at the target budgets of the settings."""
    flags: tuple[Flag, ...] = ()
    diagnostics: dict[str, object] = field(default_factory=dict)
    """Further tables for the report: hold-out, model selection, sensitivity, checklist, approach 1."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two architectures at one budget and context: loss difference, and compute that buys the same loss."""

    context_length: int
    budget: float
    better: str
    other: str
    loss_difference: Estimate
    """Loss of `better` minus loss of `other` at their optima; an interval that holds 0 decides nothing."""
    compute_ratio: Estimate
    """FLOPs that `other` needs for the loss that `better` reaches at this budget, over this budget."""
    decided: bool
    """The interval of the difference excludes 0."""
    method: str = ""
    """`isoflop parabolas`, `chinchilla law`."""


@dataclass(frozen=True, kw_only=True)
class ContextLaw:
    """An optimum against context length at one budget: x* is proportional to T^exponent."""

    arch: str
    budget: float
    quantity: Literal["N", "D", "loss"]
    exponent: Estimate
    contexts: tuple[int, ...]
    values: tuple[float, ...]
    """The optima that the exponent was fitted to, in the order of `contexts`."""
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a sweep's runs say: one group an architecture and context length, and their comparison."""

    groups: tuple[GroupAnalysis, ...]
    comparisons: tuple[Comparison, ...]
    settings: dict[str, object]
    flags: tuple[Flag, ...] = ()
    context_laws: tuple[ContextLaw, ...] = ()
    """Empty for a single context length."""
