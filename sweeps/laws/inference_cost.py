"""The model to train when it will be served: least training plus inference FLOPs at a given loss
(arXiv:2401.00448).

Sardana et al. count 2 N FLOPs a served token. That is wrong at long context, where attention pays for the
whole cache at every token and an mLSTM does not; so the inference cost is a function of N that the
architecture gives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sweeps.laws.forms import Law
from sweeps.laws.inputs import FlopFunction, six_nd
from sweeps.laws.optima import Optima, compute_for_loss, optima, paired_loss
from sweeps.laws.types import FitError

ServingCost = Callable[[np.ndarray], np.ndarray]
"""Inference FLOPs over a model's life, from N (n,) to (n,)."""

_SCAN = 80
_WIDTH = np.log(1e3)
"""How far to either side of the training optimum the scan of ln N goes."""
_ENDLESS = 1e60
"""Tokens after which no law of this package has anything left to learn from data."""


def two_n_per_token(tokens: float) -> ServingCost:
    """2 N FLOPs for each of `tokens` served."""
    return lambda N: 2.0 * np.asarray(N, dtype=float) * tokens


def decode_cost(
    flops_per_token: ServingCost, tokens: float, prompt_cost: ServingCost | None = None
) -> ServingCost:
    """`tokens` generated at an architecture's own cost a token, and what its prompts cost in all."""

    def cost(N: np.ndarray) -> np.ndarray:
        generated = tokens * flops_per_token(N)
        return generated if prompt_cost is None else generated + prompt_cost(N)

    return cost


@dataclass(frozen=True, kw_only=True)
class ServingOptimum:
    """Arrays (rows,), one entry a parameter row; nan where the loss is out of reach."""

    N: np.ndarray
    D: np.ndarray
    train_flops: np.ndarray
    inference_flops: np.ndarray
    saving: np.ndarray
    """Share of the total that the model best for training alone would cost more: 1 - total / its total."""

    @property
    def total_flops(self) -> np.ndarray:
        return self.train_flops + self.inference_flops


def serving_optimum(
    law: Law,
    params: np.ndarray,
    budget: float,
    serving: ServingCost,
    *,
    flops: FlopFunction = six_nd,
    loss: float | None = None,
) -> ServingOptimum:
    """The N and D of least training plus inference FLOPs among those that reach a loss.

    Parameters (rows, p) or (p,). The loss is that of the best model of each row at `budget` training FLOPs,
    or `loss` for all rows; the model it is compared with is the best for training at that loss.
    """
    params = np.atleast_2d(np.asarray(params, dtype=float))
    if not budget > 0:
        raise FitError(f"budget = {budget}: must be above 0")
    compute = np.full(len(params), float(budget))
    if loss is not None:
        compute = compute_for_loss(law, params, np.full(len(params), loss), budget, flops=flops)
    start = _training_optimum(law, params, compute, flops)
    goal = np.full(len(params), loss) if loss is not None else start.loss

    def total(log_N: np.ndarray) -> np.ndarray:
        D = tokens_for_loss(law, params, np.exp(log_N), goal)
        cost = flops(np.exp(log_N), D) + serving(np.exp(log_N))
        return np.where(np.isfinite(D), cost, np.inf)

    N = np.exp(lowest(total, np.log(start.N)))
    D = tokens_for_loss(law, params, N, goal)
    train, inference = flops(N, D), serving(N)
    plain = flops(start.N, start.D) + serving(start.N)
    return ServingOptimum(
        N=N, D=D, train_flops=train, inference_flops=inference, saving=1.0 - (train + inference) / plain
    )


def tokens_for_loss(law: Law, params: np.ndarray, N: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """D at which each row (rows, p) with its own N (rows,) reaches its loss (rows,); nan where none does.

    Secants on ln(loss - loss at endless data), which the Chinchilla law makes a straight line in ln D.
    """
    D = np.full(len(N), np.nan)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        floor = paired_loss(law, params, N, np.full(len(N), _ENDLESS))
        goal = np.log(loss - floor)
        log_D, slope = np.log(20.0 * N), np.full(len(N), -0.3)
        gap = np.log(paired_loss(law, params, N, np.exp(log_D)) - floor) - goal
        for _ in range(40):
            step = np.clip(-gap / slope, -8.0, 8.0)
            after = np.log(paired_loss(law, params, N, np.exp(log_D + step)) - floor) - goal
            slope = np.where(np.abs(step) > 1e-7, np.minimum((after - gap) / step, -1e-3), slope)
            log_D, gap = log_D + step, after
            if np.all((np.abs(gap) < 1e-10) | ~np.isfinite(gap)):
                break
    settled = np.abs(gap) < 1e-8
    D[settled] = np.exp(log_D[settled])
    return D


def _training_optimum(law: Law, params: np.ndarray, compute: np.ndarray, flops: FlopFunction) -> Optima:
    """Optima (rows,) of each row at its own compute."""
    parts = {C: optima(law, params[compute == C], [C], flops=flops) for C in np.unique(compute)}
    columns = {name: np.full(len(params), np.nan) for name in ("N", "D", "loss")}
    for C, part in parts.items():
        for name, column in columns.items():
            column[compute == C] = getattr(part, name)[:, 0]
    return Optima(**columns)


def lowest(cost: Callable[[np.ndarray], np.ndarray], center: np.ndarray) -> np.ndarray:
    """Place of the lowest cost (rows,) near `center` (rows,): a scan, then golden sections."""
    offsets = np.linspace(-_WIDTH, _WIDTH, _SCAN)
    scanned = np.stack([cost(center + offset) for offset in offsets])
    scanned = np.where(np.isfinite(scanned), scanned, np.inf)
    best = np.clip(scanned.argmin(axis=0), 1, _SCAN - 2)
    low, high = center + offsets[best - 1], center + offsets[best + 1]
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    for _ in range(45):
        left, right = high - golden * (high - low), low + golden * (high - low)
        rises = cost(left) <= cost(right)
        low, high = np.where(rises, low, left), np.where(rises, right, high)
    return (low + high) / 2
