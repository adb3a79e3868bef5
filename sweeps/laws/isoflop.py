"""Approach 2 (Hoffmann et al. 2022, section 3.2): a parabola in ln N for each budget, power laws through the
vertices.

Each budget's losses are fitted by least squares with c0 + c1 x + c2 x^2, x = ln N - centre. The vertex is the
optimum N*, its ordinate L*; D* follows from N* and the budget's FLOPs by the FLOP function (`tokens="tied"`),
or from a second parabola in ln D (`tokens="parabola"`, as arXiv:2510.02228 does; N* and D* then need not meet
the budget). Power laws are least-squares lines of ln N*, ln D* and ln L* on ln C; their intervals come from
the same resamples as the vertices'. The method is biased even without noise: `sweeps.laws.bias` says by how
much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.laws.inputs import FlopFunction, Points, six_nd
from sweeps.laws.intervals import estimate, percentiles
from sweeps.laws.noise import Noise, Resampling
from sweeps.laws.optima import tokens_at
from sweeps.laws.parabola import distinct, distinct_sides, parabola_coefficients, vertex
from sweeps.laws.power_laws import PowerLawFit, fit_power_law
from sweeps.laws.types import Estimate, FitError, Flag, Parabola, PowerLaw, Severity

Tokens = Literal["tied", "parabola"]
Outside = Literal["refuse", "use"]

_FLAT = 1e-9
"""A parabola that rises by less than this share of the loss over its half-range is flat to rounding."""


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """Parabolas, power laws and the draws behind their intervals."""

    parabolas: tuple[Parabola, ...]
    power_laws: dict[str, PowerLaw]
    laws: dict[str, PowerLawFit]
    """The same power laws with their draws."""
    draws: dict[str, np.ndarray]
    """N, D, loss: (resamples, budgets), nan where a resample has no vertex."""
    method: str
    """How the intervals were obtained."""
    flags: tuple[Flag, ...] = ()

    @property
    def usable(self) -> tuple[Parabola, ...]:
        """The parabolas that enter the power laws."""
        return tuple(parabola for parabola in self.parabolas if parabola.usable)

    def at_vertex(self, name: Literal["N", "D", "loss"], budget: float) -> np.ndarray | None:
        """N*, D* or L* read off the vertex of a budget, the value and then its draws (1 + resamples,).

        The vertex stands at the FLOPs that its runs spent; the power law's slope takes it to the nominal
        budget. None where the budget has no usable parabola, or there are no power laws.
        """
        places = [i for i, p in enumerate(self.parabolas) if p.usable and p.budget == budget]
        if not places or name not in self.laws:
            return None
        parabola, fit = self.parabolas[places[0]], self.laws[name]
        values = np.append(getattr(parabola, name).value, self.draws[name][:, places[0]])
        offsets = np.append(fit.law.offset, fit.offsets)
        exponents = np.append(fit.law.exponent.value, fit.exponents)
        return offsets + (values - offsets) * (budget / parabola.train_flops) ** exponents


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """One least-squares parabola in x = ln(size) - centre, and its resampled coefficients."""

    center: float
    coefficients: np.ndarray  # (3,)
    draws: np.ndarray  # (resamples, 3)
    rms: float
    half_range: float

    @property
    def flat(self) -> bool:
        c0, _, c2 = self.coefficients
        return bool(abs(c2) * self.half_range**2 < _FLAT * abs(c0))


def fit_isoflop(
    points: Points,
    *,
    flops: FlopFunction = six_nd,
    tokens: Tokens = "tied",
    outside: Outside = "refuse",
    resampling: Resampling = "auto",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> IsoflopFit:
    """Approach 2 on the runs of one architecture at one context length.

    A budget whose parabola is inverted, flat, without three sizes, or has its vertex outside the grid stays
    in the result with its flags, and out of the power laws; `outside="use"` lets vertices outside the grid
    enter with a warning, as published fits do. `resampling`: `pairs` redraws the runs within each budget;
    `student` draws the coefficients from their sampling distribution under noise of ln L of one size, pooled
    over the budgets; `auto` takes pairs where every budget has `PAIRS_NEED` runs.

    Raises `FitError` where no budget has three distinct sizes.
    """
    rng = np.random.default_rng(seed)
    groups = [points.take(points.budget == budget) for budget in points.budgets]
    if all(distinct(group.N) < 3 for group in groups):
        raise FitError(
            f"no budget has 3 distinct N, and a parabola needs them; {len(points)} runs at"
            f" {len(groups)} budget(s) were given"
        )
    noise = Noise.of(groups, resampling, resamples, rng)
    fits = [_fit_budget(group, flops, tokens, outside, noise, level) for group in groups]
    parabolas = tuple(parabola for parabola, _ in fits)
    draws = {name: np.stack([d[name] for _, d in fits], axis=1) for name in ("N", "D", "loss")}
    laws, flags = _power_laws(parabolas, draws, level, noise.method)
    return IsoflopFit(
        parabolas=parabolas,
        power_laws={name: fit.law for name, fit in laws.items()},
        laws=laws,
        draws=draws,
        method=noise.method,
        flags=flags,
    )


def _curve(size: np.ndarray, group: Points, noise: Noise, redrawn: np.ndarray) -> _Curve:
    center = float(np.log(size).mean())
    x = np.log(size) - center
    fit = parabola_coefficients(x, group.loss, group.weights[None])[0]
    residuals = group.loss - np.polynomial.polynomial.polyval(x, fit)
    return _Curve(
        center=center,
        coefficients=fit,
        draws=noise.coefficients(x, group.loss, group.weights, fit, redrawn),
        rms=float(np.sqrt(np.average(residuals**2, weights=group.weights))),
        half_range=float(np.ptp(x) / 2),
    )


def _fit_budget(
    group: Points, flops: FlopFunction, tokens: Tokens, outside: Outside, noise: Noise, level: float
) -> tuple[Parabola, dict[str, np.ndarray]]:
    if distinct(group.N) < 3:
        return _no_parabola(group, noise.rows, level)
    redrawn = noise.redraw(group)
    curve = _curve(group.N, group, noise, redrawn)
    values, draws = _vertices(curve)
    C = float(group.C.mean())
    if tokens == "tied":
        value_D, draws_D = _tied_tokens(flops, values["N"], C), _tied_tokens(flops, draws["N"], C)
    else:
        other = _curve(group.D, group, noise, redrawn)
        other_values, other_draws = _vertices(other)
        value_D, draws_D = other_values["N"], other_draws["N"]
    values, draws = {**values, "D": value_D}, {**draws, "D": draws_D}
    flags = _flags(group, curve, float(values["N"][0]), outside, level)
    usable = not any(flag.severity == "error" for flag in flags) and bool(np.isfinite(value_D[0]))

    def with_interval(name: str) -> Estimate:
        return estimate(float(values[name][0]), draws[name], level, noise.method)

    c0, c1, c2 = (float(c) for c in curve.coefficients)
    parabola = Parabola(
        budget=float(group.budget[0]),
        train_flops=C,
        center=curve.center,
        c0=c0,
        c1=c1,
        c2=c2,
        n_points=len(group),
        N_low=float(group.N.min()),
        N_high=float(group.N.max()),
        N=with_interval("N"),
        D=with_interval("D"),
        loss=with_interval("loss"),
        rms_residual=curve.rms,
        predicted_bias=float("nan"),
        usable=usable,
        flags=flags,
    )
    return parabola, draws


def _vertices(curve: _Curve) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """N and loss at the vertex, of the fit (1,) and of its draws (rows,); a flat parabola has none."""
    results = []
    for coefficients in (curve.coefficients[None], curve.draws):
        x, loss = vertex(coefficients)
        with np.errstate(over="ignore"):
            N = np.exp(curve.center + x)
        found = np.isfinite(N) & (N > 0) & (not curve.flat)
        results.append({"N": np.where(found, N, np.nan), "loss": np.where(found, loss, np.nan)})
    return results[0], results[1]


def _tied_tokens(flops: FlopFunction, N: np.ndarray, C: float) -> np.ndarray:
    D = np.full(len(N), np.nan)
    found = np.isfinite(N)
    if found.any():
        D[found] = tokens_at(flops, N[found], C)
    return D


def _no_parabola(group: Points, rows: int, level: float) -> tuple[Parabola, dict[str, np.ndarray]]:
    nan = float("nan")
    unknown = Estimate(value=nan, level=level, method="no parabola")
    message = f"budget {group.budget[0]:.3g}: {distinct(group.N)} distinct N, a parabola needs 3 and wants 5"
    parabola = Parabola(
        budget=float(group.budget[0]),
        train_flops=float(group.C.mean()),
        center=float(np.log(group.N).mean()),
        c0=nan,
        c1=nan,
        c2=nan,
        n_points=len(group),
        N_low=float(group.N.min()),
        N_high=float(group.N.max()),
        N=unknown,
        D=unknown,
        loss=unknown,
        rms_residual=nan,
        predicted_bias=nan,
        usable=False,
        flags=(Flag(code="too-few-sizes", severity="error", message=message),),
    )
    return parabola, {name: np.full(rows, nan) for name in ("N", "D", "loss")}


def _flags(group: Points, curve: _Curve, at: float, outside: Outside, level: float) -> tuple[Flag, ...]:
    """What is wrong with one parabola; `error` keeps it out of the power laws."""
    name = f"budget {group.budget[0]:.3g}"
    low, high = group.N.min(), group.N.max()
    if curve.flat:
        message = f"{name}: the loss does not change with N, so there is no optimum to read off"
        return (Flag(code="flat-parabola", severity="error", message=message),)
    if curve.coefficients[2] < 0:
        message = (
            f"{name}: the parabola opens downwards, so its vertex is a maximum; train sizes on both sides"
        )
        return (Flag(code="inverted-parabola", severity="error", message=message),)
    flags = []
    if not low <= at <= high:
        side = "larger" if at > high else "smaller"
        message = f"{name}: vertex {at:.3g} lies outside the grid {low:.3g} to {high:.3g}; add {side} sizes"
        severity: Severity = "error" if outside == "refuse" else "warning"
        flags.append(Flag(code="vertex-outside-grid", severity=severity, message=message))
    elif min(distinct_sides(group.N, at)) < 2:
        message = f"{name}: fewer than 2 sizes on one side of the vertex {at:.3g}; add sizes there"
        flags.append(Flag(code="vertex-near-edge", severity="warning", message=message))
    if distinct(group.N) < 5:
        message = f"{name}: {distinct(group.N)} distinct N; the residual says little below 5"
        flags.append(Flag(code="few-points", severity="warning", message=message))
    curvature, _ = percentiles(curve.draws[:, 2], level) if len(curve.draws) else (float("nan"), 0.0)
    if curvature <= 0:
        message = f"{name}: the {level:.0%} interval of the curvature holds 0; the optimum is not established"
        flags.append(Flag(code="curvature-uncertain", severity="warning", message=message))
    return tuple(flags)


def _power_laws(
    parabolas: Sequence[Parabola], draws: dict[str, np.ndarray], level: float, method: str
) -> tuple[dict[str, PowerLawFit], tuple[Flag, ...]]:
    flags = [
        Flag(
            code="budget-left-out", severity="warning", message=f"left out of the power laws: {flag.message}"
        )
        for parabola in parabolas
        for flag in parabola.flags
        if flag.severity == "error"
    ]
    usable = [i for i, parabola in enumerate(parabolas) if parabola.usable]
    if len(usable) < 2:
        message = (
            f"{len(usable)} of {len(parabolas)} budgets have a usable optimum; a power law needs 2, wants 4"
        )
        flags.append(Flag(code="no-power-law", severity="error", message=message))
        return {}, tuple(flags)
    if len(usable) < 3:
        message = "power laws through 2 budgets: nothing tests that they are straight; add a budget"
        flags.append(Flag(code="two-budgets", severity="warning", message=message))
    C = np.array([parabolas[i].train_flops for i in usable])
    laws = {}
    for name in ("N", "D", "loss"):
        values = np.array([getattr(parabolas[i], name).value for i in usable])
        laws[name] = fit_power_law(name, C, values, draws[name][:, usable], level=level, method=method)
    return laws, tuple(flags)
