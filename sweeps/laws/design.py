"""Which runs to train next: those that shrink the interval of N* at the target most for their FLOPs.

The parametric law's Fisher information adds up over runs, so a candidate's worth is known before it is
trained. Runs are picked one at a time (greedy c-optimal design); a pick changes the worth of the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweeps.laws.forms import Law
from sweeps.laws.inputs import FlopFunction, Points, six_nd
from sweeps.laws.objective import Objective, Problem, model
from sweeps.laws.optima import optima, paired_loss, tokens_at
from sweeps.laws.types import FitError

_STEP = 1e-4
"""Step of the central differences in the centred parameters, which are of order 1."""
_SINGULAR = 1e-13


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What is assumed of the runs before there are any."""

    law: Law
    params: np.ndarray
    """Public parameters (p,)."""
    noise: float = 0.005
    """Standard deviation of ln L between runs, from their seeds and the irregularity of their shapes."""

    def loss(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """Noise-free losses (n,)."""
        return paired_loss(self.law, np.repeat(self.params[None], len(N), axis=0), N, D)


@dataclass(frozen=True, kw_only=True)
class Design:
    """Sensitivities of ln L to a law's centred parameters at the runs that there are."""

    surface: Surface
    center: np.ndarray
    theta: np.ndarray
    information: np.ndarray
    """(p, p): J'J over the noise variance."""

    @classmethod
    def of(cls, N: np.ndarray, D: np.ndarray, surface: Surface) -> "Design":
        """The design of runs at N and D (n,)."""
        center = np.log(np.stack([N, D])).mean(axis=1)
        theta = surface.law.from_public(surface.params[None], center)[0]
        none = np.zeros((len(theta), len(theta)))
        bare = cls(surface=surface, center=center, theta=theta, information=none)
        J = bare.jacobian(N, D)
        return replace(bare, information=J @ J.T / surface.noise**2)

    def jacobian(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """d ln L / d theta at runs (n,): (p, n)."""
        x = np.log(np.stack([N, D])) - self.center[:, None]
        ones = np.ones(len(N))
        problem = Problem(
            law=self.surface.law,
            x=x,
            center=self.center,
            y=ones,
            log_y=np.log(ones),
            objective=Objective(space="log"),
        )
        return model(problem, self.theta[None])[1][0]

    def slopes(self, quantity: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Derivatives (p, k) of `quantity`, which maps public parameters (rows, p) to (rows, k)."""
        law, steps = self.surface.law, _STEP * np.eye(len(self.theta))
        up, down = (law.to_public(self.theta + sign * steps, self.center) for sign in (1, -1))
        return (quantity(up) - quantity(down)) / (2 * _STEP)

    @property
    def singular(self) -> bool:
        """The runs cannot tell the parameters apart."""
        spectrum = np.linalg.eigvalsh(self.information)
        return bool(spectrum[0] <= _SINGULAR * spectrum[-1])

    def error(self, slope: np.ndarray) -> float:
        """Standard error of a quantity with derivatives (p,); inf where the runs do not identify the law."""
        if self.singular:
            return float("inf")
        return float(np.sqrt(slope @ np.linalg.solve(self.information, slope)))


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One run worth training."""

    budget: float
    N: float
    D: float
    train_flops: float
    error_before: float
    """Standard error of ln N* at the target without this run and those after it."""
    error_after: float


def target_slope(design: Design, target: float, flops: FlopFunction = six_nd) -> np.ndarray:
    """Derivatives (p,) of ln N* at the target budget."""
    law = design.surface.law
    return design.slopes(lambda params: np.log(optima(law, params, [target], flops=flops).N))[:, 0]


def propose_runs(
    points: Points,
    surface: Surface,
    target: float,
    *,
    count: int = 5,
    budgets: Sequence[float] = (),
    flops: FlopFunction = six_nd,
    half_width: float = 8.0,
    sizes: int = 9,
) -> tuple[Proposal, ...]:
    """The `count` runs that cut the variance of ln N* at `target` most for each FLOP, one after the other.

    Candidates are `sizes` sizes from N*/half_width to N* half_width at each of `budgets` (those of the points
    by default), as far as their N and D lie within the ranges of the points: an optimal design goes to the
    extremes, and beyond the runs the law is a guess. Raises `FitError` where no candidate is left, and where
    the runs that there are do not identify the law: plan a grid first.
    """
    design = Design.of(points.N, points.D, surface)
    if design.singular or points.C.max() < 1.5 * points.C.min():
        raise FitError(
            f"{len(points)} runs do not identify {surface.law.name}: train a grid of 3 budgets first"
        )
    C, N, D = _candidates(surface, budgets or [float(b) for b in points.budgets], flops, half_width, sizes)
    within = _within(N, points.N) & _within(D, points.D)
    if not within.any():
        raise FitError("no run at these budgets has its N and D within the ranges of the runs that there are")
    C, N, D = C[within], N[within], D[within]
    slope, J = target_slope(design, target, flops), design.jacobian(N, D)
    covariance = np.linalg.inv(design.information)
    proposals = []
    for _ in range(count):
        before = float(slope @ covariance @ slope)
        pull = covariance @ J
        gain = (slope @ pull) ** 2 / (surface.noise**2 + np.sum(J * pull, axis=0))
        best = int(np.argmax(gain / C))
        covariance = covariance - np.outer(pull[:, best], pull[:, best]) / (
            surface.noise**2 + float(J[:, best] @ pull[:, best])
        )
        proposals.append(
            Proposal(
                budget=float(C[best]),
                N=float(N[best]),
                D=float(D[best]),
                train_flops=float(C[best]),
                error_before=float(np.sqrt(before)),
                error_after=float(np.sqrt(before - gain[best])),
            )
        )
    return tuple(proposals)


def _within(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return (values >= seen.min() * (1 - 1e-6)) & (values <= seen.max() * (1 + 1e-6))


def _candidates(
    surface: Surface, budgets: Sequence[float], flops: FlopFunction, half_width: float, sizes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLOPs, N and D of the candidates, all (budgets x sizes,)."""
    middle = optima(surface.law, surface.params, budgets, flops=flops).N[0]
    spread = np.exp(np.linspace(-np.log(half_width), np.log(half_width), sizes))
    N = (middle[:, None] * spread).ravel()
    C = np.repeat(np.asarray(budgets, dtype=float), sizes)
    return C, N, tokens_at(flops, N, C)


def recentre(
    vertices: Mapping[float, float], budgets: Sequence[float], *, exponent: float = 0.5
) -> np.ndarray:
    """Expected N* (budgets,) at later budgets from the vertices N* by C of earlier ones.

    With one vertex the line has the slope `exponent`, with more the least-squares slope, kept within .3 to
    .8: the published exponents lie there, and two noisy vertices can say anything. Raises `FitError` without
    a vertex.
    """
    if not vertices:
        raise FitError("no earlier vertex to centre on")
    C, N = np.log(np.array(sorted(vertices.items()), dtype=float)).T
    deviation = C - C.mean()
    slope = float(deviation @ N / (deviation @ deviation)) if len(C) > 1 else exponent
    return np.exp(N.mean() + np.clip(slope, 0.3, 0.8) * (np.log(np.asarray(budgets, float)) - C.mean()))
