"""Two sweeps side by side, before and after a change of data or recipe: is the law another, and by how much?

For each architecture and context length that both sweeps hold, three answers: the difference of the best
losses and what it is worth in compute, at every budget that both can speak of; the differences of exponents
and optima; and one test of the hypothesis that a single law holds for both (Chow 1960). Draws of the two
sweeps are independent, so an interval of a difference comes from pairs of them.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import polars as pl
from scipy.stats import f as f_distribution

from sweeps.laws.comparison import Side, compare
from sweeps.laws.engine import minimum
from sweeps.laws.fitting import find_law
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.forms import Law
from sweeps.laws.inputs import Points, prepare
from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import IsoflopFit, fit_isoflop
from sweeps.laws.optima import optima
from sweeps.laws.parametric import fit_parametric
from sweeps.laws.predictions import grid_budgets, identified, law_and_params
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import Comparison, Estimate, FitError, Flag, LawFit

T = TypeVar("T")

_UNUSED_DELTA = 1e-3
"""Huber's; least squares has none."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One quantity in both sweeps, and how the second departs from the first."""

    quantity: str
    """`a`, `E`, `N*`..."""
    budget: float | None
    """FLOPs; None for a parameter of the law."""
    first: Estimate
    second: Estimate
    change: Estimate
    """Second minus first, or second over first."""
    kind: Literal["difference", "ratio"]
    method: str
    """`isoflop power laws`, `chinchilla law`."""

    @property
    def significant(self) -> bool:
        """The interval of the change leaves `no change` out."""
        same = 0.0 if self.kind == "difference" else 1.0
        return bool(self.change.low > same or self.change.high < same)


@dataclass(frozen=True, kw_only=True)
class SameLawTest:
    """F test of one law for both sweeps against a law for each, on least squares of ln L."""

    law: str
    statistic: float
    p_value: float
    freedom: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The optimal loss of both sweeps at a budget: second minus first."""

    budget: float
    difference: Estimate
    compute_ratio: Estimate
    """Worth of the change in compute: above 1 the first needs that many times the budget to reach the
    second's loss, below 1 the second needs the inverse to reach the first's."""
    method: str

    @property
    def significant(self) -> bool:
        return bool(self.difference.low > 0 or self.difference.high < 0)


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """One architecture at one context length in both sweeps."""

    arch: str
    context_length: int
    runs: tuple[int, int]
    losses: tuple[Losses, ...]
    differences: tuple[Difference, ...]
    test: SameLawTest | None
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """What changed from the first sweep to the second."""

    names: tuple[str, str]
    groups: tuple[GroupDifference, ...]
    level: float
    flags: tuple[Flag, ...] = ()


def compare_sweeps(
    first: pl.DataFrame, second: pl.DataFrame, settings: LawSettings, *, names: tuple[str, str]
) -> SweepComparison:
    """Every architecture and context length that both run tables hold.

    Raises `FitError` where they share none.
    """
    tables = [_by_group(table) for table in (first, second)]
    shared = sorted(tables[0].keys() & tables[1].keys())
    if not shared:
        held = " and ".join(
            ", ".join(f"{a} at {c}" for a, c in sorted(table)) or "nothing" for table in tables
        )
        raise FitError(f"the sweeps share no architecture and context length: they hold {held}")
    groups = tuple(_group(key, tables[0][key], tables[1][key], settings) for key in shared)
    alone = sorted(tables[0].keys() ^ tables[1].keys())
    message = (
        f"in one sweep only, so not compared: {', '.join(f'{arch} at context {c}' for arch, c in alone)}"
    )
    flags = (Flag(code="unshared-groups", severity="info", message=message),) if alone else ()
    return SweepComparison(names=names, groups=groups, level=settings.level, flags=flags)


def _by_group(table: pl.DataFrame) -> dict[tuple[str, int], pl.DataFrame]:
    named = table.drop_nulls(["arch", "context_length"])
    parts = named.partition_by(["arch", "context_length"], as_dict=True)
    return {(str(arch), int(context)): part for (arch, context), part in parts.items()}


def _group(
    key: tuple[str, int], first: pl.DataFrame, second: pl.DataFrame, settings: LawSettings
) -> GroupDifference:
    flags: list[Flag] = []
    sides = []
    for which, table in (("first", first), ("second", second)):
        side = _side(which, key, table, settings, flags)
        if side is None:
            return GroupDifference(
                arch=key[0],
                context_length=key[1],
                runs=(first.height, second.height),
                losses=(),
                differences=(),
                test=None,
                flags=tuple(flags),
            )
        sides.append(side)
    one, two = sides
    return GroupDifference(
        arch=key[0],
        context_length=key[1],
        runs=(len(one.points), len(two.points)),
        losses=tuple(_losses(found) for found in compare(one, two, settings)),
        differences=(*_exponents(one, two, settings), *_by_law(one, two, settings)),
        test=_attempt(lambda: same_law(one.points, two.points, settings), flags),
        flags=tuple(flags),
    )


def _side(
    which: str, key: tuple[str, int], table: pl.DataFrame, settings: LawSettings, flags: list[Flag]
) -> Side | None:
    """The fits of one sweep; the two sweeps draw different noise, however alike they are."""
    points = _attempt(lambda: prepare(table, drop_invalid=True), flags)
    if points is None:
        return None
    flops = flops_of_runs(points)
    label = zlib.crc32(f"{which}/{key[0]}/{key[1]}".encode())
    seed = int(np.random.SeedSequence([settings.seed, label]).generate_state(1)[0])
    isoflop = _attempt(
        lambda: fit_isoflop(
            points, flops=flops, resamples=settings.resamples, level=settings.level, seed=seed
        ),
        flags,
    )
    fits = _attempt(lambda: fit_parametric(points, replace(settings, seed=seed)), flags) or ()
    return Side(arch=which, context_length=key[1], points=points, flops=flops, isoflop=isoflop, fits=fits)


def _attempt(make: Callable[[], T], flags: list[Flag]) -> T | None:
    try:
        return make()
    except FitError as error:
        flags.append(Flag(code="no-fit", severity="warning", message=str(error)))
        return None


def _losses(found: Comparison) -> Losses:
    """A comparison says which side is better; here it is always second against first."""
    gap, ratio = found.loss_difference, found.compute_ratio
    if found.better == "first":
        gap = -gap
        ratio = replace(
            ratio, value=_inverse(ratio.value), low=_inverse(ratio.high), high=_inverse(ratio.low)
        )
    return Losses(budget=found.budget, difference=gap, compute_ratio=ratio, method=found.method)


def _inverse(value: float) -> float:
    """1 / value; an endless ratio turns into 0."""
    return 0.0 if value == float("inf") else 1.0 / value if value else float("inf")


def _change(
    name: str,
    budget: float | None,
    values: Sequence[np.ndarray],
    kind: Literal["difference", "ratio"],
    method: str,
    level: float,
) -> Difference:
    """From the value and then the draws of each sweep."""
    n = min(len(column) for column in values)
    one, two = (np.asarray(column[:n], dtype=float) for column in values)
    moved = two - one if kind == "difference" else two / one
    how = f"{method}, independent draws of both"
    first, second, change = (estimate(c[0], c[1:], level, how) for c in (one, two, moved))
    return Difference(
        quantity=name, budget=budget, first=first, second=second, change=change, kind=kind, method=method
    )


def _exponents(one: Side, two: Side, settings: LawSettings) -> Iterator[Difference]:
    """Exponents of the power laws through the parabolas' optima."""
    fits: list[IsoflopFit] = [side.isoflop for side in (one, two) if side.isoflop is not None]
    if len(fits) < 2:
        return
    for name, symbol in (("N", "a"), ("D", "b")):
        laws = [fit.laws.get(name) for fit in fits]
        if laws[0] is None or laws[1] is None:
            continue
        columns = [np.append(law.law.exponent.value, law.exponents) for law in laws if law is not None]
        yield _change(symbol, None, columns, "difference", "isoflop power laws", settings.level)


def _by_law(one: Side, two: Side, settings: LawSettings) -> Iterator[Difference]:
    """Parameters of the law, and the optima that it gives at shared budgets and targets."""
    if not all(side.fits and identified(side.fits[0]) for side in (one, two)):
        return
    law, _ = law_and_params(one.fits[0])
    rows = [_rows(side.fits[0]) for side in (one, two)]
    quantities = [law.quantities(row) for row in rows]
    for name in ("a", "E"):
        if all(name in found for found in quantities):
            columns = [found[name] for found in quantities]
            yield _change(name, None, columns, "difference", f"{law.name} law", settings.level)
    shared = np.intersect1d(grid_budgets(one.points), grid_budgets(two.points))
    for budget in np.unique([*shared, *settings.target_budgets]):
        best = [
            optima(law, row, [float(budget)], flops=side.flops)
            for row, side in zip(rows, (one, two), strict=True)
        ]
        for name in ("N", "D"):
            columns = [getattr(found, name)[:, 0] for found in best]
            if all(np.isfinite(column[0]) for column in columns):
                yield _change(f"{name}*", float(budget), columns, "ratio", f"{law.name} law", settings.level)


def _rows(fit: LawFit) -> np.ndarray:
    _, params = law_and_params(fit)
    return params[None] if fit.draws is None else np.vstack([params, fit.draws])


def same_law(one: Points, two: Points, settings: LawSettings) -> SameLawTest:
    """Chow's test: by how much two laws fit better than one, against what chance would give.

    Least squares of ln L, so that both sweeps' misfits add up. It takes the misfits to be independent and of
    one size; lack of fit in both makes it cautious. Raises `FitError` where a sweep has no more runs than the
    law has parameters.
    """
    law = find_law(settings.law)
    p, n = len(law.params), len(one) + len(two)
    if min(len(one), len(two)) <= p:
        raise FitError(
            f"a test of one law needs more than {p} runs in each sweep, got {len(one)} and {len(two)}"
        )
    pooled = {
        name: np.concatenate([getattr(side, name) for side in (one, two)]) for name in ("N", "D", "loss")
    }
    together = _misfit(law, pooled)
    apart = sum(_misfit(law, {name: getattr(side, name) for name in pooled}) for side in (one, two))
    freedom = (p, n - 2 * p)
    statistic = max(together - apart, 0.0) / p / (apart / freedom[1])
    return SameLawTest(
        law=law.name,
        statistic=float(statistic),
        p_value=float(f_distribution.sf(statistic, *freedom)),
        freedom=freedom,
    )


def _misfit(law: Law, columns: dict[str, np.ndarray]) -> float:
    """Sum of squared residuals of ln L at its minimum."""
    inputs = {name: columns[name] for name in law.inputs}
    weights = np.ones(len(columns["loss"]))
    fitted = minimum(law, inputs, columns["loss"], weights, name="ls-log", delta=_UNUSED_DELTA)
    residuals = np.log(columns["loss"]) - np.log(law.predict(fitted.params, **inputs))
    return float(residuals @ residuals)
