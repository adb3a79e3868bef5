"""The optimum against context length, and the two architectures' optima against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.laws import Estimate
from sweeps.laws.context import context_laws
from sweeps.laws.intervals import estimate
from sweeps.laws.types import ContextLaw
from sweeps.study.isoflop import Curves, Quantity, curves_of

XLSTM, TRANSFORMER = "mlstm", "transformer"


def all_context_laws(curves: Sequence[Curves], level: float = 0.95) -> tuple[ContextLaw, ...]:
    """x*(T) = A T^exponent at every budget and of every quantity, where an architecture has two contexts."""
    archs = sorted({c.arch for c in curves})
    fits = {arch: {c.context_length: c.ours for c in curves if c.arch == arch} for arch in archs}
    return tuple(law for arch in archs for law in context_laws(arch, fits[arch], level))


@dataclass(frozen=True, kw_only=True)
class OptimumGap:
    """The xLSTM's optimum against the Transformer's at one budget and context length."""

    context_length: int
    budget: float
    N_ratio: Estimate
    """N* of the xLSTM over N* of the Transformer."""
    D_ratio: Estimate
    loss_gap: Estimate
    """L* of the xLSTM minus L* of the Transformer, nats per token."""


def optimum_gaps(curves: Sequence[Curves], level: float = 0.95) -> tuple[OptimumGap, ...]:
    """At every budget that both architectures have at a context length; their draws are independent."""
    gaps = []
    for context in sorted({c.context_length for c in curves}):
        one, two = curves_of(curves, XLSTM, context), curves_of(curves, TRANSFORMER, context)
        if one is None or two is None:
            continue
        for budget in sorted(set(one.budgets) & set(two.budgets)):
            sides = [_logs(one, two, q, budget) for q in ("N", "D", "loss")]
            if any(side is None for side in sides):
                continue
            N, D, loss = (side for side in sides if side is not None)
            gaps.append(
                OptimumGap(
                    context_length=context,
                    budget=budget,
                    N_ratio=_estimate(np.exp(N), one, level),
                    D_ratio=_estimate(np.exp(D), one, level),
                    loss_gap=_estimate(loss, one, level),
                )
            )
    return tuple(gaps)


def _logs(one: Curves, two: Curves, quantity: Literal["N", "D", "loss"], budget: float) -> np.ndarray | None:
    """Value and draws (1 + resamples,): difference of the losses, or of the logarithms."""
    a, b = one.ours.at_vertex(quantity, budget), two.ours.at_vertex(quantity, budget)
    if a is None or b is None:
        return None
    return a - b if quantity == "loss" else np.log(a / b)


def _estimate(values: np.ndarray, curves: Curves, level: float) -> Estimate:
    return estimate(float(values[0]), values[1:], level, curves.ours.method)


@dataclass(frozen=True, kw_only=True)
class GapTrend:
    """How the gap between the architectures changes from the shortest to the longest context."""

    budget: float
    contexts: tuple[int, ...]
    N_ratio_exponent: Estimate
    """Slope of ln(N* xLSTM / N* Transformer) on ln T: above 0 the ratio grows with the context."""
    loss_gap_change: Estimate
    """Loss gap at the longest context minus the gap at the shortest, nats: below 0 the xLSTM gains."""


def gap_trends(curves: Sequence[Curves], level: float = 0.95) -> tuple[GapTrend, ...]:
    """At every budget where both architectures have an optimum at two context lengths or more."""
    both = [
        T
        for T in sorted({c.context_length for c in curves})
        if curves_of(curves, XLSTM, T) is not None and curves_of(curves, TRANSFORMER, T) is not None
    ]
    trends = []
    for budget in sorted({b for c in curves for b in c.budgets}):
        found = {T: (_between(curves, T, "N", budget), _between(curves, T, "loss", budget)) for T in both}
        there = {T: (n, loss) for T, (n, loss) in found.items() if n is not None and loss is not None}
        if len(there) < 2:
            continue
        T = np.log(np.array(list(there), dtype=float))
        slopes = (T - T.mean()) @ np.stack([n for n, _ in there.values()]) / np.sum((T - T.mean()) ** 2)
        losses = [loss for _, loss in there.values()]
        first = next(c for c in curves if c.context_length == min(there))
        trends.append(
            GapTrend(
                budget=budget,
                contexts=tuple(there),
                N_ratio_exponent=_estimate(slopes, first, level),
                loss_gap_change=_estimate(losses[-1] - losses[0], first, level),
            )
        )
    return tuple(trends)


def _between(curves: Sequence[Curves], context: int, quantity: Quantity, budget: float) -> np.ndarray | None:
    one, two = curves_of(curves, XLSTM, context), curves_of(curves, TRANSFORMER, context)
    assert one is not None
    assert two is not None
    return _logs(one, two, quantity, budget)
