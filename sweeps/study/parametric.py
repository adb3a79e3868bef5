"""The authors' grid of parametric fits (PAPER 3.1, 6.3), each cell to its minimum, in seconds.

A cell is an architecture, a set of runs, a bound of tokens a parameter, a form (with or without gamma) and
Huber's delta; what is minimised is theirs: the sum of Huber(delta) of the residuals of ln L. They start
L-BFGS with finite differences from 2,000 or 8,000 points in each cell. Here the deltas of a cell are walked
from large to small: least squares from all starts of the law, then each delta from the minima of the one
before and a quarter of the starts, because below 1e-3 the objective is nearly least absolute deviation and a
cold start stops at its kinks.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context

import numpy as np
import polars as pl
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from sweeps.laws import LAWS, FitError
from sweeps.laws.engine import START_TOLERANCE, Estimator, descend, estimator, pose
from sweeps.laws.objective import Problem, evaluate, residuals
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import ISOFLOP, TOKENPARAM, select

CONTEXT_LENGTH = 8192
SETS: Mapping[str, str | None] = {"all": None, TOKENPARAM: TOKENPARAM, ISOFLOP: ISOFLOP}
RATIOS = (100.0, 300.0, 5000.0)
"""Upper bounds of D/N; the last bounds nothing."""
DELTAS = (1e4, 1e3, 100.0, 10.0, 5.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The eleven of the stored files; the script of the repository walks seven of them."""

_KEPT = 8
"""Minima that the next delta starts from."""
_POLISHED = 1e-7
"""Scaled gradient above which the best three ends are polished by quasi-Newton steps."""


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """What is fitted."""

    arch: str
    experiment_set: str
    max_ratio: float
    gamma: bool
    delta: float

    @property
    def law(self) -> str:
        return "gamma" if self.gamma else "chinchilla"


@dataclass(frozen=True, kw_only=True)
class CellFit:
    """A cell at its minimum."""

    cell: Cell
    n: int
    objective: float
    params: Mapping[str, float]
    """A, B, E, alpha, beta and, where fitted, gamma."""
    scaled_gradient: float
    largest_residual: float
    """Of ln L. Below delta the fit is least squares."""

    @property
    def N_exponent(self) -> float:
        """beta / (alpha + beta): the exponent of N*(C) if C were 6 N D."""
        return self.params["beta"] / (self.params["alpha"] + self.params["beta"])


def cells(
    *,
    archs: Iterable[str] = (XLSTM, TRANSFORMER),
    sets: Iterable[str] = tuple(SETS),
    ratios: Iterable[float] = RATIOS,
    gammas: Iterable[bool] = (False, True),
    deltas: Iterable[float] = DELTAS,
) -> tuple[Cell, ...]:
    """The grid, or a part of it."""
    axes = product(archs, sets, ratios, gammas, deltas)
    return tuple(Cell(arch=a, experiment_set=s, max_ratio=r, gamma=g, delta=d) for a, s, r, g, d in axes)


def cell_runs(runs: pl.DataFrame, cell: Cell) -> pl.DataFrame:
    """The runs of a cell: one architecture at context 8192."""
    return select(
        runs,
        arch=cell.arch,
        context_length=CONTEXT_LENGTH,
        experiment_set=SETS[cell.experiment_set],
        max_ratio=cell.max_ratio,
    )


def fit_cells(runs: pl.DataFrame, wanted: Sequence[Cell], *, workers: int = 1) -> dict[Cell, CellFit]:
    """Every wanted cell at its minimum; `workers` processes share the chains of deltas.

    Raises `FitError` where a cell has fewer runs than its law has parameters.
    """
    chains: dict[tuple[str, str, float, bool], list[Cell]] = {}
    for cell in wanted:
        chains.setdefault((cell.arch, cell.experiment_set, cell.max_ratio, cell.gamma), []).append(cell)
    jobs = [(chain, *_columns(runs, chain[0])) for chain in chains.values()]
    if workers <= 1 or len(jobs) == 1:
        found = [_fit_chain(*job) for job in jobs]
    else:
        # Spawned, not forked: the caller may hold threads of polars.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(_fit_chain, *zip(*jobs, strict=True)))
    return {fit.cell: fit for fits in found for fit in fits}


def _columns(runs: pl.DataFrame, cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = cell_runs(runs, cell)
    if table.height < len(LAWS[cell.law].params):
        raise FitError(
            f"{cell.arch}, {cell.experiment_set}, D/N up to {cell.max_ratio:g}: {table.height} runs at"
            f" context {CONTEXT_LENGTH} are too few for the {cell.law} law"
        )
    N, D, loss = (table[name].to_numpy().astype(float) for name in ("N", "D", "loss"))
    return N, D, loss


def _fit_chain(chain: Sequence[Cell], N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> list[CellFit]:
    with threadpool_limits(1):  # a 5 x 5 solve on several threads spends its time on waking them
        return _walk(chain, N, D, loss)


def _walk(chain: Sequence[Cell], N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> list[CellFit]:
    fits: list[CellFit] = []
    warm: np.ndarray | None = None
    for cell in sorted(chain, key=lambda cell: -cell.delta):
        if fits and fits[-1].largest_residual < cell.delta:
            # No residual reaches this delta: the objective around the minimum is the same least squares.
            fits.append(_renamed(fits[-1], cell))
            continue
        problem, how, weights = _pose(cell, N, D, loss)
        starts = problem.law.starts(float(problem.log_y.mean()))
        starts = starts if warm is None else np.vstack([warm, starts[::4]])
        theta, others = _lowest(problem, how, weights, starts)
        warm = np.vstack([theta[None], others])
        fits.append(_cell_fit(cell, problem, weights, theta))
    return fits


def _renamed(fit: CellFit, cell: Cell) -> CellFit:
    return CellFit(**{**vars(fit), "cell": cell})


def _pose(
    cell: Cell, N: np.ndarray, D: np.ndarray, loss: np.ndarray
) -> tuple[Problem, Estimator, np.ndarray]:
    weights = np.ones(len(loss))
    how = estimator("huber-log", cell.delta)
    return pose(LAWS[cell.law], {"N": N, "D": D}, loss, how.objective, weights), how, weights


def _lowest(
    problem: Problem, how: Estimator, weights: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest minimum (p,) and the next ones (<= 7, p)."""
    found = descend(problem, how, starts, weights, tolerance=START_TOLERANCE)
    order = np.argsort(np.where(np.isfinite(found.value), found.value, np.inf), kind="stable")
    best = found.theta[order[0]]
    if found.scaled_gradient[order[0]] > _POLISHED:
        ends = [_polish(problem, weights, found.theta[i]) for i in order[:3]]
        best = min(ends, key=lambda theta: float(evaluate(problem, theta[None], weights).value[0]))
    return best, found.theta[order[: _KEPT - 1]]


def _polish(problem: Problem, weights: np.ndarray, theta: np.ndarray, rounds: int = 3) -> np.ndarray:
    """L-BFGS with the exact gradient on the objective in units of its own value, until a round gains
    nothing."""
    for _ in range(rounds):
        unit = float(evaluate(problem, theta[None], weights).value[0])

        def scaled(at: np.ndarray, unit: float = unit) -> tuple[float, np.ndarray]:
            with np.errstate(all="ignore"):
                here = evaluate(problem, at[None], weights)
            value = float(here.value[0]) / unit
            return (value, here.gradient[0] / unit) if np.isfinite(value) else (1e10, np.zeros_like(at))

        options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-12, "maxcor": 30}
        done = minimize(scaled, theta, jac=True, method="L-BFGS-B", options=options)
        if done.fun >= 1.0 - 1e-12:
            return theta
        theta = done.x
    return theta


def _cell_fit(cell: Cell, problem: Problem, weights: np.ndarray, theta: np.ndarray) -> CellFit:
    at = evaluate(problem, theta[None], weights)
    with np.errstate(over="ignore"):
        public = problem.law.to_public(theta[None], problem.center)[0]
    return CellFit(
        cell=cell,
        n=len(weights),
        objective=float(at.value[0]),
        params=dict(zip(problem.law.params, map(float, public), strict=True)),
        scaled_gradient=float(at.scaled_gradient[0]),
        largest_residual=float(np.abs(residuals(problem, theta[None])[0]).max()),
    )


def log_loss(params: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """ln L of the law at public parameters A, B, E, alpha, beta and gamma (1 where absent), in logarithms:
    A and B of the authors reach 1e9 and E falls to 0."""
    gamma = params.get("gamma", 1.0)
    with np.errstate(divide="ignore"):
        a, b, e = (np.log(params[name]) for name in ("A", "B", "E"))
    inner = np.logaddexp(a - params["alpha"] * np.log(N), b - params["beta"] * np.log(D))
    return np.logaddexp(gamma * inner, e)


def huber_sum(residual: np.ndarray, delta: float) -> float:
    """Sum of r^2/2 inside delta and delta (|r| - delta/2) outside."""
    size = np.abs(residual)
    return float(np.sum(np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))))


def objective_at(runs: pl.DataFrame, cell: Cell, params: Mapping[str, float]) -> float:
    """The cell's objective at given parameters on these runs: what a published minimum is worth here."""
    N, D, loss = _columns(runs, cell)
    return huber_sum(log_loss(params, N, D) - np.log(loss), cell.delta)
