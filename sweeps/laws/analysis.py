"""`analyse`: from a run table to everything that the report says. Pure, and the same for the same seed."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np
import polars as pl

from sweeps.laws.bias import predicted_bias
from sweeps.laws.comparison import Side, compare
from sweeps.laws.context import context_laws
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.forms import LAWS
from sweeps.laws.inference_cost import ServingCost
from sweeps.laws.inputs import FlopFunction, Points, prepare
from sweeps.laws.isoflop import IsoflopFit, fit_isoflop
from sweeps.laws.parametric import fit_parametric
from sweeps.laws.predictions import identified, law_and_params, predict
from sweeps.laws.settings import LawSettings
from sweeps.laws.tables import diagnostic_tables
from sweeps.laws.types import (
    Analysis,
    Comparison,
    ContextLaw,
    FitError,
    Flag,
    GroupAnalysis,
    LawFit,
    Severity,
)

T = TypeVar("T")

FlopFunctions = Mapping[tuple[str, int], FlopFunction]
"""Training FLOPs by (arch, context_length)."""
ServingCosts = Mapping[tuple[str, int], ServingCost]
"""FLOPs of serving `settings.served_tokens` tokens by (arch, context_length)."""

HARMLESS_EPOCHS = 4.0
"""Up to four epochs repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023)."""
_GROUP_NEEDS = 3
"""Runs that a budget which nobody named must have on the median."""
_OFF_BUDGET = 0.1
"""The paper's runs are counted to a budget within 10 % of it."""


def analyse(
    run_table: pl.DataFrame,
    settings: LawSettings | None = None,
    *,
    flops: FlopFunctions | None = None,
    serving: ServingCosts | None = None,
) -> Analysis:
    """All fits of a run table, one group an architecture and context length, and the architectures compared.

    `flops` gives the FLOP function of a group; without one it is read off the table's `train_flops`, and
    without those it is 6 N D. `serving` gives the cost of serving a group's models, else 2 N FLOPs a token.
    Runs that are not finished or hold no usable numbers are left out with a flag. A group that cannot be
    fitted comes back with flags and without the fits that it cannot support.

    Raises `FitError` where a column that names the groups is missing or a setting is unknown.
    """
    settings = settings or LawSettings()
    _check(run_table, settings)
    states, lost = [], []
    for (arch, context), table in _groups(run_table):
        given = (flops or {}).get((arch, context)), (serving or {}).get((arch, context))
        try:
            states.append(_analyse_group(arch, context, table, settings, *given))
        except FitError as error:
            lost.append(_failed_group(arch, context, table.height, error))
    groups = sorted([*(state.analysis for state in states), *lost], key=lambda g: (g.arch, g.context_length))
    return Analysis(
        groups=tuple(groups),
        comparisons=tuple(_comparisons(states, settings)),
        settings=asdict(settings),
        flags=_table_flags(run_table, groups),
        context_laws=_context_laws(states, settings),
    )


@dataclass(frozen=True, kw_only=True)
class _State:
    """A group's results and what the comparisons need of it."""

    analysis: GroupAnalysis
    side: Side


def _check(run_table: pl.DataFrame, settings: LawSettings) -> None:
    for column in ("arch", "context_length"):
        if column not in run_table.columns:
            raise FitError(f"column '{column}' is missing; the groups of the fits are named by it")
    if settings.law not in LAWS or set(LAWS[settings.law].inputs) != {"N", "D"}:
        names = ", ".join(name for name, law in LAWS.items() if set(law.inputs) == {"N", "D"})
        raise FitError(f"law '{settings.law}' is unknown; the laws of N and D are {names}")
    if not 0 < settings.level < 1:
        raise FitError(f"level = {settings.level}: must lie between 0 and 1")
    if unknown := set(settings.profile) - _quantities(settings.law):
        names = ", ".join(sorted(_quantities(settings.law)))
        raise FitError(f"profile = {unknown.pop()}: {settings.law} has {names}")
    if not settings.served_tokens >= 0:
        raise FitError(f"served_tokens = {settings.served_tokens}: must be 0 or more")
    if settings.resamples < 0:
        raise FitError(f"resamples = {settings.resamples}: must be 0 or more")


def _quantities(law: str) -> set[str]:
    return set(LAWS[law].quantities(np.ones((1, len(LAWS[law].params)))))


def _groups(run_table: pl.DataFrame) -> list[tuple[tuple[str, int], pl.DataFrame]]:
    named = run_table.filter(pl.col("arch").is_not_null() & pl.col("context_length").is_not_null())
    parts = named.partition_by(["arch", "context_length"], as_dict=True)
    keyed = {(str(arch), int(context)): table for (arch, context), table in parts.items()}
    return sorted(keyed.items())


def _analyse_group(
    arch: str,
    context: int,
    table: pl.DataFrame,
    settings: LawSettings,
    given: FlopFunction | None,
    serving: ServingCost | None,
) -> _State:
    points = _grouped(prepare(_with_budgets(table), drop_invalid=True))
    settings = replace(settings, seed=_seed(settings.seed, arch, context))
    flops = given or flops_of_runs(points)
    flags = [*points.flags, *_run_flags(table, points)]
    isoflop = _attempt(lambda: _isoflop(points, flops, settings), flags)
    fits = _attempt(lambda: fit_parametric(points, settings), flags) or ()
    if isoflop is not None:
        flags += isoflop.flags
        isoflop = _with_bias(isoflop, fits, points, flops)
    tables = diagnostic_tables(table, points, isoflop, fits, settings, flops, given is not None, serving)
    side = Side(arch=arch, context_length=context, points=points, flops=flops, isoflop=isoflop, fits=fits)
    analysis = GroupAnalysis(
        arch=arch,
        context_length=context,
        n_runs=len(points),
        parabolas=isoflop.parabolas if isoflop else (),
        power_laws=isoflop.power_laws if isoflop else {},
        parametric=fits,
        optima=predict(points, flops, isoflop, fits, settings),
        flags=tuple(flags),
        diagnostics=tables,
    )
    return _State(analysis=analysis, side=side)


def _attempt(fit: Callable[[], T], flags: list[Flag]) -> T | None:
    """The result, or nothing and the reason among the flags."""
    try:
        return fit()
    except FitError as error:
        flags.append(Flag(code="no-fit", severity="error", message=str(error)))
        return None


def _with_budgets(table: pl.DataFrame) -> pl.DataFrame:
    """Without the budget column where it is empty: the runs were not planned in groups."""
    empty = "budget" in table.columns and table["budget"].null_count() == table.height
    return table.drop("budget") if empty else table


def _seed(seed: int, arch: str, context: int) -> int:
    """Groups of the same size must not draw the same noise: their comparison takes them as independent."""
    label = zlib.crc32(f"{arch}/{context}".encode())
    return int(np.random.SeedSequence([seed, label]).generate_state(1)[0])


def _grouped(points: Points) -> Points:
    """Runs without budgets, counted to one where their FLOPs lie within 10 % of each other."""
    runs = np.unique(points.budget, return_counts=True)[1]
    if np.median(runs) > 1 or len(points) < 2 * _GROUP_NEEDS:
        return points
    order = np.argsort(points.C, kind="stable")
    labels = np.zeros(len(points), dtype=int)
    first = points.C[order[0]]
    for before, row in pairwise(order):
        new = points.C[row] > first * (1 + _OFF_BUDGET)
        first = points.C[row] if new else first
        labels[row] = labels[before] + new
    means = np.array([np.exp(np.log(points.C[labels == k]).mean()) for k in range(labels.max() + 1)])
    if np.median(np.bincount(labels)) < _GROUP_NEEDS:
        return points
    message = f"the table names no budgets: {len(points)} runs were counted to {len(means)} by their FLOPs"
    flag = Flag(code="budgets-inferred", severity="info", message=message)
    return replace(points, budget=means[labels], flags=(*points.flags, flag))


def _isoflop(points: Points, flops: FlopFunction, settings: LawSettings) -> IsoflopFit:
    return fit_isoflop(
        points, flops=flops, resamples=settings.resamples, level=settings.level, seed=settings.seed
    )


def _with_bias(
    isoflop: IsoflopFit, fits: Sequence[LawFit], points: Points, flops: FlopFunction
) -> IsoflopFit:
    """The parabolas with the bias that the fitted surface predicts for them."""
    surface = next((fit for fit in fits if identified(fit)), None)
    if surface is None:
        return isoflop
    law, params = law_and_params(surface)
    bias = predicted_bias(law, params, points, flops=flops)
    parabolas = tuple(
        replace(parabola, predicted_bias=float(error))
        for parabola, error in zip(isoflop.parabolas, bias.log_N, strict=True)
    )
    return replace(isoflop, parabolas=parabolas)


def _run_flags(table: pl.DataFrame, points: Points) -> Iterator[Flag]:
    """What the runs themselves say against the fits."""
    epochs = table["epochs"].max() if "epochs" in table.columns else None
    if isinstance(epochs, float) and epochs > 1.0:
        severity: Severity = "warning" if epochs > HARMLESS_EPOCHS else "info"
        message = (
            f"data were repeated, up to {epochs:.3g} epochs; repeated tokens are worth less than new ones"
        )
        yield Flag(code="repeated-data", severity=severity, message=message)
    off = float(abs(points.C / points.budget - 1.0).max())
    if off > _OFF_BUDGET:
        message = f"a run spent {off:.0%} more or less than its budget; its parabola mixes budgets"
        yield Flag(code="off-budget", severity="warning", message=message)


def _failed_group(arch: str, context: int, runs: int, error: FitError) -> GroupAnalysis:
    return GroupAnalysis(
        arch=arch,
        context_length=context,
        n_runs=runs,
        parabolas=(),
        power_laws={},
        parametric=(),
        optima=(),
        flags=(Flag(code="no-fit", severity="error", message=str(error)),),
    )


def _comparisons(states: Sequence[_State], settings: LawSettings) -> Iterator[Comparison]:
    for one, two in combinations([state.side for state in states], 2):
        if one.context_length == two.context_length:
            yield from compare(one, two, settings)


def _context_laws(states: Sequence[_State], settings: LawSettings) -> tuple[ContextLaw, ...]:
    """Of every architecture that was trained at several context lengths."""
    by_arch: dict[str, dict[int, IsoflopFit]] = {}
    for side in (state.side for state in states):
        if side.isoflop is not None:
            by_arch.setdefault(side.arch, {})[side.context_length] = side.isoflop
    laws = [context_laws(arch, fits, settings.level) for arch, fits in sorted(by_arch.items())]
    return tuple(law for found in laws for law in found)


def _table_flags(run_table: pl.DataFrame, groups: Sequence[GroupAnalysis]) -> tuple[Flag, ...]:
    if not groups:
        message = "no run names its arch and context_length, so there is nothing to fit"
        return (Flag(code="no-runs", severity="error", message=message),)
    unnamed = run_table.filter(pl.col("arch").is_null() | pl.col("context_length").is_null()).height
    if not unnamed:
        return ()
    message = f"{unnamed} row(s) without arch or context_length were left out"
    return (Flag(code="unnamed-runs", severity="warning", message=message),)
