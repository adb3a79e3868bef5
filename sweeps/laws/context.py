"""How the optimum moves with the context length: x* = A T^c at one budget (arXiv:2510.02228, section 3.2).

Attention spends FLOPs on context that the parameters do not get; its N* and D* fall with T at a fixed budget,
those of an mLSTM hardly do.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.power_laws import straight_lines
from sweeps.laws.types import ContextLaw, Flag

_QUANTITIES: tuple[Literal["N", "D", "loss"], ...] = ("N", "D", "loss")


def context_laws(arch: str, fits: Mapping[int, IsoflopFit], level: float = 0.95) -> tuple[ContextLaw, ...]:
    """N*, D* and L* against context length at each budget where two contexts or more have a usable vertex.

    `fits` holds the parabolas of one architecture by context length. Draws of different contexts are
    independent.
    """
    budgets = np.unique([p.budget for fit in fits.values() for p in fit.usable])
    return tuple(law for budget in budgets for law in _at_budget(arch, float(budget), fits, level))


def _at_budget(
    arch: str, budget: float, fits: Mapping[int, IsoflopFit], level: float
) -> Sequence[ContextLaw]:
    places = {
        context: [i for i, p in enumerate(fit.parabolas) if p.budget == budget and p.usable]
        for context, fit in sorted(fits.items())
    }
    contexts = [context for context, found in places.items() if found]
    if len(contexts) < 2:
        return []
    return [_law(arch, budget, name, contexts, places, fits, level) for name in _QUANTITIES]


def _law(
    arch: str,
    budget: float,
    name: Literal["N", "D", "loss"],
    contexts: Sequence[int],
    places: Mapping[int, Sequence[int]],
    fits: Mapping[int, IsoflopFit],
    level: float,
) -> ContextLaw:
    log_T = np.log(np.array(contexts, dtype=float))
    values = np.array([getattr(fits[c].parabolas[places[c][0]], name).value for c in contexts])
    columns = [fits[c].draws[name][:, places[c][0]] for c in contexts]
    n = min(len(column) for column in columns)
    drawn = np.stack([column[:n] for column in columns], axis=1)
    exponent, exponents = (straight_lines(log_T, rows)[1] for rows in (values[None], drawn))
    message = f"{arch} at {budget:.3g} FLOPs: two context lengths draw the line exactly; add a third"
    flags = (Flag(code="two-contexts", severity="info", message=message),) if len(contexts) == 2 else ()
    return ContextLaw(
        arch=arch,
        budget=budget,
        quantity=name,
        exponent=estimate(exponent[0], exponents, level, fits[contexts[0]].method),
        contexts=tuple(contexts),
        values=tuple(float(value) for value in values),
        flags=flags,
    )
