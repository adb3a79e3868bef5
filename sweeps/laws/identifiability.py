"""Whether the data can tell the parameters: refused where they cannot, flagged where they hardly can."""

from collections.abc import Mapping

import numpy as np

from sweeps.laws.bootstrap import WANTED_CONVERGED, Bootstrap
from sweeps.laws.diagnostics import Conditioning, Leverage
from sweeps.laws.engine import AGREEMENT, RESAMPLE_TOLERANCE, Solution
from sweeps.laws.forms import Array, Law
from sweeps.laws.types import FitError, Flag, Severity

NARROW = 4.0
"""An input whose largest value is less than this many times its smallest hardly shows its exponent."""
FEW_DISTINCT = 4
ILL_CONDITIONED = 1e6
"""Condition number of J'J in centred parameters; the Chinchilla points have 4e3, five near-equal N 1e10."""
WIDE_EXPONENT = 0.2
"""Interquartile range of the bootstrap draws of an exponent."""
WILD_EXPONENT = 2.0

_INVISIBLE = 1e-8
"""Smallest over largest singular value, columns scaled, at which a direction leaves no trace."""
_HOPELESS = 1e12
"""Condition number from which rounding moves the answer."""
_SAME = 1e-6
"""Relative difference below which two inputs are one size."""


def _flag(code: str, severity: Severity, message: str) -> Flag:
    return Flag(code=code, severity=severity, message=message)


def check_support(law: Law, inputs: Mapping[str, Array], response: Array) -> list[Flag]:
    """Before the fit. Raises `FitError` where no estimator can help, flags thin support."""
    n, p = len(response), len(law.params)
    if n < p:
        raise FitError(f"{law.name} has {p} parameters and there are {n} points: at least {p} are needed")
    if np.ptp(np.log(response)) < _SAME:
        raise FitError(f"all {n} responses equal {response[0]:.6g}: a constant shows no law")
    flags = []
    if n < 2 * p:
        message = f"{n} points for {p} parameters: no interval of this fit can be trusted"
        flags.append(_flag("few-points", "warning", message))
    for name in law.inputs:
        flags += _support_of(law, name, np.asarray(inputs[name], dtype=float))
    return flags


def _support_of(law: Law, name: str, column: Array) -> list[Flag]:
    distinct, factor = count_distinct(column), float(column.max() / column.min())
    if distinct == 1:
        raise FitError(f"{name} is {column[0]:.6g} in every row: {law.name} needs several values of {name}")
    flags = []
    if distinct < FEW_DISTINCT:
        message = f"only {distinct} distinct values of {name}: its exponent rests on an assumption of the law"
        flags.append(_flag("few-distinct", "warning", message))
    if factor < NARROW and name in law.exponents:
        message = f"{name} spans a factor of {factor:.4g} (below {NARROW:g}): its exponent is hardly visible"
        flags.append(_flag("narrow-range", "warning", message))
    return flags


def count_distinct(column: Array) -> int:
    """Distinct values, those within 1e-6 of the next smaller one counted once."""
    return 1 + int(np.sum(np.diff(np.sort(np.log(column))) > _SAME))


def check_budgets(law: Law, compute: Array) -> list[Flag]:
    """On one budget N and D move together, and E cannot be told from the level of the two terms."""
    if {"N", "D"} <= set(law.inputs) and compute.max() / compute.min() < 1.5:
        message = (
            "all points spend one budget: only the ratio of the two terms is visible, E is not identified"
        )
        return [_flag("one-budget", "error", message)]
    return []


def check_solution(law: Law, params: Array, solution: Solution, at: Conditioning) -> list[Flag]:
    """After the fit. Raises `FitError` where a direction of the parameters is invisible."""
    if at.smallest_share < _INVISIBLE or not at.condition < _HOPELESS:
        raise FitError(
            f"{law.name} is not identified by these points: {at.weakest} can change almost without a trace "
            f"(condition number {at.condition:.3g} of J'J); add sizes, token counts or budgets, "
            "or fit a law with fewer parameters"
        )
    values = dict(zip(law.params, params, strict=True))
    for name, value in values.items():
        if not np.isfinite(value) or (value == 0 and name not in at.vanished):
            raise FitError(f"{law.name} is not identified by these points: {name} has run to {value:g}")
    flags = [
        _flag("vanished-term", "error", f"{name} has run to 0: the data ask for a law without it")
        for name in at.vanished
    ]
    if at.condition > ILL_CONDITIONED:
        message = (
            f"condition number {at.condition:.3g} of J'J (above {ILL_CONDITIONED:g}): "
            f"the data hardly see {at.weakest}"
        )
        flags.append(_flag("ill-conditioned", "error", message))
    for name in dict.fromkeys(law.exponents.values()):
        if not 0 < values[name] <= WILD_EXPONENT:
            message = (
                f"{name} = {values[name]:.6g} is outside (0, {WILD_EXPONENT:g}]: not a falling power law"
            )
            flags.append(_flag("exponent-out-of-range", "error", message))
    return flags + _check_starts(solution)


def _check_starts(solution: Solution) -> list[Flag]:
    flags = []
    if solution.scaled_gradient > RESAMPLE_TOLERANCE:
        message = f"the scaled gradient is {solution.scaled_gradient:.3g}: this is not a minimum"
        flags.append(_flag("not-converged", "error", message))
    if solution.agreeing_starts < 3:
        message = (
            f"{solution.agreeing_starts} of {solution.n_starts} starts reached this minimum; "
            f"the runner-up is {solution.runner_up_excess:.3g} above it"
        )
        flags.append(_flag("few-agreeing-starts", "warning", message))
    elif AGREEMENT < solution.other_minimum_excess < 0.01:
        message = f"another minimum lies {100 * solution.other_minimum_excess:.3g} % above this one"
        flags.append(_flag("close-second-minimum", "warning", message))
    return flags


def check_zone(n_params: int, share: float, n_points: int) -> list[Flag]:
    """Huber's minimum passes within delta of as many points as the law has parameters, or it is a plateau."""
    if round(share * n_points) >= n_params:
        return []
    message = (
        f"{share:.1%} of the residuals lie in Huber's quadratic zone, fewer than the {n_params} parameters:"
        " the objective is flat here and the parameters are arbitrary; raise delta, or split mixed rows"
    )
    return [_flag("flat-objective", "error", message)]


def check_draws(law: Law, draws: Bootstrap) -> list[Flag]:
    """What the resamples say about identification."""
    flags = []
    if draws.converged < WANTED_CONVERGED:
        message = (
            f"{100 * draws.converged:.1f} % of the resamples reached a minimum: distrust the {draws.method}"
        )
        flags.append(_flag("resamples-not-converged", "warning", message))
    for name in dict.fromkeys(law.exponents.values()):
        column = draws.params[:, law.params.index(name)]
        column = column[np.isfinite(column)]
        if len(column) == 0:
            continue
        low, high = np.quantile(column, [0.25, 0.75])
        if high - low > WIDE_EXPONENT:
            message = (
                f"half of the resamples put {name} outside {low:.3g} to {high:.3g}: it is hardly identified"
            )
            flags.append(_flag("unidentified", "error", message))
        wild = float(np.mean((column <= 0) | (column > WILD_EXPONENT)))
        if wild > 0.01:
            message = f"{100 * wild:.1f} % of the resamples put {name} outside (0, {WILD_EXPONENT:g}]"
            flags.append(_flag("wild-resamples", "warning", message))
    return flags


def check_leverage(points: Leverage) -> list[Flag]:
    """Whether one point, the five of lowest loss, or five that pull one way, decide the answer."""
    unit = points.standard_error
    if not unit > 0:
        return []
    flags = []
    single = points.shifts[points.worst] / unit
    if abs(single) > max(0.5, 2.0 / np.sqrt(len(points.rows))):
        flags.append(
            _leverage_flag(points, f"row {points.rows[points.worst]} ({points.worst_point})", float(single))
        )
    if abs(points.lowest_shift) > unit:
        who = f"the {points.group_size} point(s) of lowest loss"
        flags.append(_leverage_flag(points, who, points.lowest_shift / unit))
    if abs(points.strongest_shift) > 1.5 * unit:
        who = f"rows {', '.join(map(str, points.strongest_rows))}"
        flags.append(_leverage_flag(points, who, points.strongest_shift / unit))
    return flags


def _leverage_flag(points: Leverage, who: str, shift: float) -> Flag:
    moved = points.value + shift * points.standard_error
    message = (
        f"without {who}, {points.quantity} moves from {points.value:.6g} to {moved:.6g} "
        f"({shift:+.2g} standard errors)"
    )
    return _flag("leverage", "warning", message)
