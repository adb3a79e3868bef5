"""Two architectures at one budget and context length: who is better, by how much, and what that is worth in
FLOPs."""

from dataclasses import dataclass

import numpy as np

from sweeps.laws.inputs import FlopFunction, Points
from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.optima import compute_for_loss, optima
from sweeps.laws.predictions import grid_budgets, identified, law_and_params, on_line
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import Comparison, LawFit


@dataclass(frozen=True, kw_only=True)
class Side:
    """One architecture's fits, as a comparison needs them."""

    arch: str
    context_length: int
    points: Points
    flops: FlopFunction
    isoflop: IsoflopFit | None
    fits: tuple[LawFit, ...]


def compare(one: Side, two: Side, settings: LawSettings) -> list[Comparison]:
    """Comparisons at the budgets that both grids hold and at the targets.

    At a budget where both have a usable parabola these decide; elsewhere both parametric laws do, if
    identified, else the power laws of L* through both sides' vertices. The two architectures' draws are
    independent. Budgets where none serves are left out.
    """
    shared = np.intersect1d(grid_budgets(one.points), grid_budgets(two.points))
    comparisons = []
    for budget in np.unique([*shared, *settings.target_budgets]):
        asked = one, two, float(budget), settings
        found = _by_vertices(*asked) or _by_laws(*asked) or _by_power_laws(*asked)
        if found is not None:
            comparisons.append(found)
    return comparisons


def _by_vertices(one: Side, two: Side, budget: float, settings: LawSettings) -> Comparison | None:
    losses = [side.isoflop.at_vertex("loss", budget) if side.isoflop else None for side in (one, two)]
    return _by_isoflop(one, two, budget, losses, settings, "isoflop parabolas")


def _by_power_laws(one: Side, two: Side, budget: float, settings: LawSettings) -> Comparison | None:
    fits = [side.isoflop.laws.get("loss") if side.isoflop else None for side in (one, two)]
    losses = [None if fit is None else on_line(fit, budget) for fit in fits]
    return _by_isoflop(one, two, budget, losses, settings, "isoflop power laws")


def _by_isoflop(
    one: Side,
    two: Side,
    budget: float,
    losses: list[np.ndarray | None],
    settings: LawSettings,
    method: str,
) -> Comparison | None:
    """From each side's loss and its draws; what it is worth in FLOPs follows the worse side's loss law."""
    if losses[0] is None or losses[1] is None:
        return None
    first_is_better = losses[0][0] <= losses[1][0]
    (better, low), (other, high) = _ordered(one, two, losses, first_is_better)
    draws = min(len(low), len(high))
    assert other.isoflop is not None
    loss_law = other.isoflop.laws["loss"]
    ratio = _ratio(low[:1], high[:1], loss_law.law.offset, loss_law.law.exponent.value)[0]
    drawn = slice(1, draws)
    ratios = _ratio(low[drawn], high[drawn], loss_law.offsets[: draws - 1], loss_law.exponents[: draws - 1])
    return _comparison(
        better,
        other,
        budget,
        low[:draws] - high[:draws],
        np.append(ratio, ratios),
        settings,
        method,
    )


def _ordered(
    one: Side, two: Side, losses: list[np.ndarray | None], first_is_better: bool
) -> tuple[tuple[Side, np.ndarray], tuple[Side, np.ndarray]]:
    assert losses[0] is not None
    assert losses[1] is not None
    pairs = ((one, losses[0]), (two, losses[1]))
    return pairs if first_is_better else (pairs[1], pairs[0])


def _ratio(
    low: np.ndarray, high: np.ndarray, offset: np.ndarray | float, exponent: np.ndarray | float
) -> np.ndarray:
    """FLOPs over the budget at which the other's loss, now `high`, falls to `low` along its loss law."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(
            low > offset, ((low - offset) / (high - offset)) ** (1.0 / np.asarray(exponent)), np.inf
        )


def _by_laws(one: Side, two: Side, budget: float, settings: LawSettings) -> Comparison | None:
    if not all(side.fits and identified(side.fits[0]) for side in (one, two)):
        return None
    losses = [_law_losses(side, budget) for side in (one, two)]
    if not all(np.isfinite(loss[0]) for loss in losses):
        return None
    (better, low), (other, high) = _ordered(one, two, [*losses], bool(losses[0][0] <= losses[1][0]))
    n = min(len(low), len(high))
    law, _ = law_and_params(other.fits[0])
    ratios = compute_for_loss(law, _rows(other.fits[0])[:n], low[:n], budget, flops=other.flops) / budget
    return _comparison(better, other, budget, low[:n] - high[:n], ratios, settings, f"{law.name} law")


def _rows(fit: LawFit) -> np.ndarray:
    """Parameters of the fit, then of its draws."""
    _, params = law_and_params(fit)
    return params[None] if fit.draws is None else np.vstack([params, fit.draws])


def _law_losses(side: Side, budget: float) -> np.ndarray:
    law, _ = law_and_params(side.fits[0])
    return optima(law, _rows(side.fits[0]), [budget], flops=side.flops).loss[:, 0]


def _comparison(
    better: Side,
    other: Side,
    budget: float,
    difference: np.ndarray,
    ratio: np.ndarray,
    settings: LawSettings,
    method: str,
) -> Comparison:
    """From values and draws, the value first in each array."""
    how = f"{method}, independent draws of both"
    loss_difference = estimate(difference[0], difference[1:], settings.level, how)
    return Comparison(
        context_length=better.context_length,
        budget=budget,
        better=better.arch,
        other=other.arch,
        loss_difference=loss_difference,
        compute_ratio=estimate(ratio[0], ratio[1:], settings.level, how),
        decided=bool(loss_difference.high < 0 or loss_difference.low > 0),
        method=method,
    )
