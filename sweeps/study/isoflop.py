"""IsoFLOP curves, optima and power laws of the study: the authors' two parabolas beside ours, tied by FLOPs.

The authors fit loss against ln N and, independently, against ln D at every budget, and a line through the
vertices in logarithms (PAPER 3.2). Their N* and D* need not spend the budget that they stand at. Ours have
one parabola, and D* = C / (FLOPs a token at N*).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from sweeps.laws import FlopFunction, Points
from sweeps.laws.flop_curves import curve_error, flops_of_runs
from sweeps.laws.isoflop import IsoflopFit, fit_isoflop
from sweeps.laws.parabola import parabola_coefficients, vertex
from sweeps.laws.power_laws import PowerLawFit, fit_power_law
from sweeps.study.data import isoflop_groups, redrawn_losses

Quantity = Literal["N", "D", "loss"]
QUANTITIES: tuple[Quantity, ...] = ("N", "D", "loss")

RANGES: Mapping[int, float] = {3: 5e19, 4: 2e20, 5: 1e21}
"""Largest budget of the authors' laws by their number of budgets: context plots, power-law plot, all."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The grids of one architecture at one context length."""

    arch: str
    context_length: int
    points: Points
    ours: IsoflopFit
    """One parabola a budget in ln N, D* by the FLOP function, intervals from resamples."""
    published: IsoflopFit
    """Two parabolas a budget, no intervals."""
    published_loss_D: Mapping[float, float]
    """L* of the authors' second parabola, in ln D, by budget."""
    flops: FlopFunction
    flops_error: float
    """Largest relative difference between the FLOP function and what a run spent."""

    @property
    def budgets(self) -> tuple[float, ...]:
        return tuple(parabola.budget for parabola in self.ours.parabolas)

    def contradiction(self, budget: float) -> float:
        """FLOPs that the authors' N* and D* spend together, over those of the budget's runs."""
        at = next(p for p in self.published.parabolas if p.budget == budget)
        spent = self.flops(np.array([at.N.value]), np.array([at.D.value]))
        return float(spent[0] / at.train_flops)


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """x* = A C^exponent by least squares in logarithms, with the standard errors of that line."""

    A: float
    exponent: float
    A_std: float
    exponent_std: float
    n_budgets: int

    def __call__(self, C: float) -> float:
        return float(self.A * C**self.exponent)

    def inverse(self, x: float) -> float:
        """C at which the law reaches x."""
        return float((x / self.A) ** (1.0 / self.exponent))


def fit_curves(
    runs: pl.DataFrame, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[Curves, ...]:
    """Both fits of every grid, by architecture and context length."""
    found = []
    for i, (arch, context, points) in enumerate(isoflop_groups(runs)):
        flops = flops_of_runs(points)
        ours = fit_isoflop(points, flops=flops, resamples=resamples, level=level, seed=seed + 7919 * i)
        published = fit_isoflop(points, flops=flops, tokens="parabola", outside="use", resamples=0)
        found.append(
            Curves(
                arch=arch,
                context_length=context,
                points=points,
                ours=ours,
                published=published,
                published_loss_D=_losses_in_D(points),
                flops=flops,
                flops_error=curve_error(points, flops),
            )
        )
    return tuple(found)


def _losses_in_D(points: Points) -> dict[float, float]:
    losses = {}
    for budget in points.budgets:
        group = points.take(points.budget == budget)
        x = np.log(group.D) - np.log(group.D).mean()
        losses[float(budget)] = float(
            vertex(parabola_coefficients(x, group.loss, np.ones((1, len(x)))))[1][0]
        )
    return losses


def published_law(curves: Curves, quantity: Quantity, n_budgets: int) -> PublishedLaw | None:
    """The authors' law through their vertices up to `RANGES[n_budgets]`; None with another number of
    budgets."""
    used = [p for p in curves.published.parabolas if p.budget <= RANGES[n_budgets]]
    if len(used) != n_budgets or n_budgets < 3:
        return None
    C = np.array([p.train_flops for p in used])
    values = np.array([getattr(p, quantity).value for p in used])
    return line_in_logs(C, values)


def line_in_logs(C: np.ndarray, values: np.ndarray) -> PublishedLaw:
    """Least squares of ln(values) on ln C with classical standard errors, as scipy's curve_fit gives them."""
    x, y = np.log(C), np.log(values)
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    (middle, exponent), *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(x) - 2
    variance = float(np.sum((y - design @ [middle, exponent]) ** 2) / freedom) if freedom else float("nan")
    spread = float(np.sum((x - x.mean()) ** 2))
    ln_A = float(middle - exponent * x.mean())
    ln_A_variance = variance * (1.0 / len(x) + x.mean() ** 2 / spread)
    return PublishedLaw(
        A=float(np.exp(ln_A)),
        exponent=float(exponent),
        A_std=float(np.exp(ln_A) * np.sqrt(ln_A_variance)),
        exponent_std=float(np.sqrt(variance / spread)),
        n_budgets=len(x),
    )


def our_law(curves: Curves, quantity: Quantity, n_budgets: int, level: float = 0.95) -> PowerLawFit | None:
    """Our law over the same budgets, with the interval of the resamples and Student's of the line."""
    places = [i for i, p in enumerate(curves.ours.parabolas) if p.usable and p.budget <= RANGES[n_budgets]]
    if len(places) != n_budgets:
        return None
    used = [curves.ours.parabolas[i] for i in places]
    C = np.array([p.train_flops for p in used])
    values = np.array([getattr(p, quantity).value for p in used])
    draws = curves.ours.draws[quantity][:, places]
    return fit_power_law(quantity, C, values, draws, level=level, method=curves.ours.method)


@dataclass(frozen=True, kw_only=True)
class BoundedLosses:
    """How much losses that are known to an interval alone move one optimum."""

    arch: str
    context_length: int
    budget: float
    bounded_runs: int
    runs: int
    N_spread: float
    """Standard deviation of ln N* when each loss is drawn uniformly inside its bounds."""
    loss_spread: float
    """The same of L*, in nats per token."""


def bounded_loss_effect(runs: pl.DataFrame, *, draws: int = 400, seed: int = 0) -> tuple[BoundedLosses, ...]:
    """For every grid with bounded losses, what the bounds alone do to the vertex."""
    effects = []
    isoflop = runs.filter((pl.col("experiment_set") == "isoflop") & pl.col("budget").is_not_null())
    parts = isoflop.partition_by(["arch", "context_length", "budget"], as_dict=True)
    for (arch, context, budget), table in sorted(parts.items()):
        n_bounded = table.filter(pl.col("loss_high") > pl.col("loss_low")).height
        if not n_bounded or table["N"].n_unique() < 3:
            continue
        x = np.log(table["N"].to_numpy())
        x = x - x.mean()
        losses = redrawn_losses(table, draws, seed)
        fits = np.polynomial.polynomial.polyfit(x, losses.T, 2).T
        at, lowest = vertex(fits)
        effects.append(
            BoundedLosses(
                arch=str(arch),
                context_length=int(context),
                budget=float(budget),
                bounded_runs=n_bounded,
                runs=table.height,
                N_spread=float(np.nanstd(at)),
                loss_spread=float(np.nanstd(lowest)),
            )
        )
    return tuple(effects)


def curves_of(all_curves: Sequence[Curves], arch: str, context_length: int) -> Curves | None:
    """The grids of one architecture at one context length; None where there are none."""
    return next((c for c in all_curves if (c.arch, c.context_length) == (arch, context_length)), None)
