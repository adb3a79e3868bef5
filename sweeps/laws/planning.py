"""A grid scored before anything is trained, and the runs that would tell most for their FLOPs.

Everything follows from an assumed surface and an assumed noise of ln L. Least squares then has a known
covariance: of each parabola's coefficients, hence of its vertex and of the power law; and of the parametric
law, from its Jacobian. The delta method turns them into intervals of a and of ln N* at the target; what a
parabola gets wrong without any noise comes from `sweeps.laws.bias`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from scipy.special import ndtri

from sweeps.laws.bias import predicted_bias
from sweeps.laws.design import Design, Proposal, Surface, propose_runs, recentre
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.forms import LAWS
from sweeps.laws.inputs import FlopFunction, Points, prepare
from sweeps.laws.isoflop import fit_isoflop
from sweeps.laws.optima import optima, tokens_at
from sweeps.laws.parabola import distinct_sides, parabola_coefficients
from sweeps.laws.types import FitError, Flag


@dataclass(frozen=True, kw_only=True)
class BudgetQuality:
    """One parabola that is still to be measured."""

    budget: float
    n_runs: int
    N_low: float
    N_high: float
    N_expected: float
    """N* of the assumed surface."""
    log_N_error: float
    """Expected standard error of ln N* at the vertex."""
    bias: float
    """Error of ln N* without noise."""
    inside: bool
    """The expected optimum has at least two sizes on each side."""


@dataclass(frozen=True, kw_only=True)
class Centre:
    """A planned budget beyond the vertices that are measured already, and where they put its optimum."""

    budget: float
    N_planned: float
    """Middle of the planned sizes in ln N."""
    N_expected: float
    """By the line through the earlier vertices."""


@dataclass(frozen=True, kw_only=True)
class GroupQuality:
    """The expected worth of one architecture's grid. Half-widths are of central intervals at the level
    asked."""

    arch: str
    context_length: int
    n_runs: int
    train_flops: float
    budgets: tuple[BudgetQuality, ...]
    exponent: float
    """a of the assumed surface between the grid's first and last budget."""
    exponent_half_width: float
    """Of a through the parabolas."""
    exponent_half_width_law: float
    """Of a through the parametric law."""
    exponent_bias: float
    target: float
    N_target: float
    N_target_factor: float
    """The interval of N* at the target through the parabolas is N* divided and multiplied by this."""
    N_target_factor_law: float
    N_target_bias: float
    """Relative error of N* at the target without noise, through the parabolas."""
    proposals: tuple[Proposal, ...] = ()
    """Runs beside the plan that would shrink the law's interval of N* at the target most for their FLOPs."""
    centres: tuple[Centre, ...] = ()
    """Empty before there are finished runs."""
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanQuality:
    """A plan's expected worth."""

    groups: tuple[GroupQuality, ...]
    assumptions: dict[str, float | str] = field(default_factory=dict)

    @property
    def table(self) -> list[dict[str, object]]:
        """One row a group, ready to print."""
        return [_row(group) for group in self.groups]

    @property
    def flags(self) -> tuple[Flag, ...]:
        return tuple(flag for group in self.groups for flag in group.flags)


def surface_through(
    points: Points, flops: FlopFunction, *, alpha: float = 0.35, beta: float = 0.37, noise: float = 0.005
) -> Surface:
    """A Chinchilla surface whose optimum runs through the middle of the grid, for want of knowledge.

    The exponents are Besiroglu et al.'s (2024) on Hoffmann's points; at the middle budget half of the loss is
    irreducible. The amplitudes are such that the middle size of the middle budget is its optimum.
    """
    C = float(np.exp(np.log(points.budget).mean()))
    N = float(np.exp(np.log(points.N).mean()))
    D = float(tokens_at(flops, np.array(N), C))
    h = 1e-4
    ends = tokens_at(flops, np.array([N * np.exp(-h), N * np.exp(h)]), C)
    slope = -float(np.log(ends[1] / ends[0])) / (2 * h)
    # At the optimum alpha A N^-alpha = slope beta B D^-beta, slope = -dlnD/dlnN; together the terms are E.
    share = slope * beta / (alpha + slope * beta)
    E = 1.8
    params = np.array([E * share * N**alpha, E * (1 - share) * D**beta, E, alpha, beta])
    return Surface(law=LAWS["chinchilla"], params=params, noise=noise)


def describe_plan_quality(
    plan_table: pl.DataFrame,
    *,
    surface: Surface | None = None,
    noise: float = 0.005,
    target: float | None = None,
    level: float = 0.95,
    finished: pl.DataFrame | None = None,
) -> PlanQuality:
    """Score a plan: `plan_table` has arch, context_length, budget, N, D and train_flops, one row a planned
    run.

    Without a `surface` each group is scored on one whose optimum runs through its grid's middle, which tells
    what the grid can do at best. `target` is ten times the largest budget by default. `finished` is the run
    table of what is trained already: later budgets are centred on its vertices. Raises `FitError` for a
    missing column.
    """
    missing = [
        name for name in ("arch", "context_length", "budget", "N", "D") if name not in plan_table.columns
    ]
    if missing:
        raise FitError(f"a plan needs the column(s) {', '.join(missing)}")
    if plan_table.height == 0:
        raise FitError("the plan has no runs")
    z = float(ndtri((1 + level) / 2))
    goal = float(10 * plan_table["budget"].to_numpy().max() if target is None else target)
    groups = []
    for (arch, context), table in sorted(
        plan_table.partition_by(["arch", "context_length"], as_dict=True).items(), key=str
    ):
        points = prepare(table.with_columns(loss=pl.lit(1.0)))
        group = _score(str(arch), int(context), points, surface, noise, goal, z)
        groups.append(_centred(group, points, finished))
    assumptions: dict[str, float | str] = {
        "surface": "given"
        if surface
        else "chinchilla, alpha .35, beta .37, optimum through the middle of the grid",
        "noise of ln L": surface.noise if surface else noise,
        "target": goal,
        "level": level,
    }
    return PlanQuality(groups=tuple(groups), assumptions=assumptions)


def _score(
    arch: str, context: int, points: Points, given: Surface | None, noise: float, target: float, z: float
) -> GroupQuality:
    flops = flops_of_runs(points)
    surface = given or surface_through(points, flops, noise=noise)
    bias = predicted_bias(surface.law, surface.params, points, flops=flops, target=target)
    budgets = tuple(_budgets(points, surface, flops, bias.log_N))
    C = np.array([budget.budget for budget in budgets])
    exponent_error, target_error = _parabola_errors(budgets, C, target)
    law_exponent, law_target = _law_errors(points, surface, flops, C, target)
    best = optima(surface.law, surface.params, [C.min(), C.max(), target], flops=flops).N[0]
    rise = np.log(best[1] / best[0]) / np.log(C.max() / C.min()) if len(C) > 1 else float("nan")
    return GroupQuality(
        arch=arch,
        context_length=context,
        n_runs=len(points),
        train_flops=float(points.C.sum()),
        budgets=budgets,
        exponent=float(rise),
        exponent_half_width=z * exponent_error,
        exponent_half_width_law=z * law_exponent,
        exponent_bias=bias.exponent_N,
        target=target,
        N_target=float(best[2]),
        N_target_factor=float(np.exp(z * target_error)),
        N_target_factor_law=float(np.exp(z * law_target)),
        N_target_bias=bias.relative_N,
        proposals=_proposals(points, surface, target, flops),
        flags=tuple(_flags(arch, context, budgets, bias.exponent_N, z * exponent_error)),
    )


def _proposals(points: Points, surface: Surface, target: float, flops: FlopFunction) -> tuple[Proposal, ...]:
    """Three runs, or none where the plan does not identify the law that tells their worth."""
    try:
        return propose_runs(points, surface, target, count=3, flops=flops)
    except FitError:
        return ()


def _centred(group: GroupQuality, planned: Points, finished: pl.DataFrame | None) -> GroupQuality:
    """With the centres that finished runs suggest for the budgets beyond them."""
    vertices = _vertices(group, finished)
    later = [budget for budget in group.budgets if vertices and budget.budget > 1.01 * max(vertices)]
    if not later:
        return group
    expected = recentre(vertices, [budget.budget for budget in later])
    middles = [np.log(planned.N[planned.budget == budget.budget]).mean() for budget in later]
    centres = tuple(
        Centre(budget=budget.budget, N_planned=float(np.exp(middle)), N_expected=float(N))
        for budget, middle, N in zip(later, middles, expected, strict=True)
    )
    off = (c for c in centres if abs(np.log(c.N_expected / c.N_planned)) > _OFF_CENTRE)
    flags = tuple(Flag(code="off-centre", severity="warning", message=_off_centre(group, c)) for c in off)
    return replace(group, centres=centres, flags=(*group.flags, *flags))


def _off_centre(group: GroupQuality, centre: Centre) -> str:
    return (
        f"{group.arch} at context {group.context_length}, budget {centre.budget:.3g}: the vertices put N*"
        f" at {centre.N_expected:.3g}, the middle of the planned sizes is {centre.N_planned:.3g}; move them"
    )


def _vertices(group: GroupQuality, finished: pl.DataFrame | None) -> dict[float, float]:
    """N* by FLOPs at the budgets whose finished runs have a usable parabola."""
    if finished is None or "loss" not in finished.columns:
        return {}
    here = (pl.col("arch") == group.arch) & (pl.col("context_length") == group.context_length)
    table = finished.filter(here)
    try:
        fit = fit_isoflop(prepare(table, drop_invalid=True), resamples=0)
    except FitError:
        return {}
    return {parabola.train_flops: parabola.N.value for parabola in fit.usable}


def _budgets(
    points: Points, surface: Surface, flops: FlopFunction, bias: np.ndarray
) -> Iterator[BudgetQuality]:
    for budget, error in zip(points.budgets, bias, strict=True):
        group = points.take(points.budget == budget)
        expected = float(optima(surface.law, surface.params, [group.C.mean()], flops=flops).N[0, 0])
        yield BudgetQuality(
            budget=float(budget),
            n_runs=len(group),
            N_low=float(group.N.min()),
            N_high=float(group.N.max()),
            N_expected=expected,
            log_N_error=vertex_error(group, surface),
            bias=float(error),
            inside=min(distinct_sides(group.N, expected)) >= 2,
        )


def vertex_error(group: Points, surface: Surface) -> float:
    """Standard error of the vertex's ln N by the delta method; nan where three sizes or a minimum are
    missing."""
    x = np.log(group.N) - np.log(group.N).mean()
    loss = surface.loss(group.N, group.D)
    _, c1, c2 = parabola_coefficients(x, loss, np.ones((1, len(x))))[0]
    if not c2 > 0:
        return float("nan")
    inverse = np.linalg.pinv(np.stack([np.ones_like(x), x, x**2], axis=1))
    gradient = np.array([0.0, -1.0 / (2 * c2), c1 / (2 * c2**2)])
    return float(np.linalg.norm((gradient @ inverse) * surface.noise * loss))


def _parabola_errors(budgets: Sequence[BudgetQuality], C: np.ndarray, target: float) -> tuple[float, float]:
    """Standard errors of a and of ln N* at the target, of the least-squares line through the vertices."""
    errors = np.array([budget.log_N_error for budget in budgets])
    if len(C) < 2:
        return float("nan"), float("nan")
    deviation = np.log(C) - np.log(C).mean()
    slope = deviation / (deviation @ deviation)
    at_target = 1.0 / len(C) + slope * (np.log(target) - np.log(C).mean())
    return float(np.linalg.norm(slope * errors)), float(np.linalg.norm(at_target * errors))


def _law_errors(
    points: Points, surface: Surface, flops: FlopFunction, C: np.ndarray, target: float
) -> tuple[float, float]:
    """The same through the parametric law fitted by least squares of ln L; inf where it is not identified."""
    design = Design.of(points.N, points.D, surface)
    if len(C) < 2 or design.singular:
        return float("inf"), float("inf")
    ends = [float(C.min()), float(C.max()), target]
    slopes = design.slopes(lambda params: np.log(optima(surface.law, params, ends, flops=flops).N))
    exponent = (slopes[:, 1] - slopes[:, 0]) / np.log(ends[1] / ends[0])
    return design.error(exponent), design.error(slopes[:, 2])


_OFF_CENTRE = float(np.log(1.5))
"""Distance in ln N between a grid's middle and the expected optimum from which parabolas lean."""
_WIDE = 0.1
"""Half-width of a from which a grid hardly tells the published exponents (.45 to .58) apart."""


def _flags(
    arch: str, context: int, budgets: Sequence[BudgetQuality], bias: float, half_width: float
) -> Iterator[Flag]:
    name = f"{arch} at context {context}"
    if len(budgets) < 3:
        message = f"{name}: {len(budgets)} budget(s); a power law needs 2 and shows its error from 3 on"
        yield Flag(code="few-budgets", severity="warning", message=message)
    for budget in budgets:
        if budget.n_runs < 5:
            message = (
                f"{name}, budget {budget.budget:.3g}: {budget.n_runs} runs; plan 5 or more, 7 are better"
            )
            yield Flag(code="few-points", severity="warning", message=message)
        if not budget.inside:
            message = (
                f"{name}, budget {budget.budget:.3g}: the expected optimum {budget.N_expected:.3g} has fewer"
                f" than 2 sizes on one side of {budget.N_low:.3g} to {budget.N_high:.3g}"
            )
            yield Flag(code="vertex-outside-grid", severity="warning", message=message)
    if abs(bias) > half_width > 0:
        message = f"{name}: the parabolas' bias of a ({bias:+.2g}) exceeds its interval (+-{half_width:.2g})"
        yield Flag(code="parabola-bias", severity="warning", message=message)
    if not half_width < _WIDE:
        message = (
            f"{name}: a would be known to +-{half_width:.2g} only; spread the budgets, add sizes or seeds"
        )
        yield Flag(code="wide-interval", severity="warning", message=message)


def _row(group: GroupQuality) -> dict[str, object]:
    return {
        "arch": group.arch,
        "context_length": group.context_length,
        "runs": group.n_runs,
        "train_flops": group.train_flops,
        "a": group.exponent,
        "a_half_width": group.exponent_half_width,
        "a_half_width_law": group.exponent_half_width_law,
        "a_bias": group.exponent_bias,
        "target": group.target,
        "N_target": group.N_target,
        "N_target_factor": group.N_target_factor,
        "N_target_factor_law": group.N_target_factor_law,
        "N_target_bias": group.N_target_bias,
    }
