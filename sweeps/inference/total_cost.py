"""Training and serving together: the model of least device time that reaches a loss, by architecture.

The laws of a sweep say which models reach a loss and what they take to train; the runtime model says what
they take to serve. Both are device-seconds here, so that the sum is what the choice of a model costs
(arXiv:2401.00448 counts FLOPs for both, which decoding, bound by memory, does not follow).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.inference.runtime import Models, work
from sweeps.laws import Estimate
from sweeps.laws.forms import Law
from sweeps.laws.inference_cost import lowest, tokens_for_loss
from sweeps.laws.inputs import FlopFunction
from xlstm.accounting import BytesPerElement, count_parameters
from xlstm.config import ModelConfig

_STEEP = 6
_SLACK = 1.01
"""Of the limit on tokens a parameter, for a search that ends beside it."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a model will be asked for."""

    tokens: float
    """Generated over its life."""
    prompt_length: int
    generated_length: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a sweep knows of one architecture."""

    arch: str
    context_length: int
    law: Law
    params: np.ndarray
    """(parameters,) of the law's public form."""
    draws: np.ndarray
    """(resamples, parameters)."""
    flops: FlopFunction
    """Training FLOPs of N and D."""
    largest_ratio: float
    """Most tokens a parameter among the runs. No model beyond it is chosen: the law was not asked there."""
    flops_per_s: float
    """Speed of training."""
    configs: tuple[ModelConfig, ...]
    """Shapes of the sweep, along which the cost of serving is a smooth function of N."""


@dataclass(frozen=True, kw_only=True)
class TotalCost:
    """The model of least total time at one loss.

    Seconds of one device; nan where the loss is out of reach.
    """

    arch: str
    loss: float
    N: Estimate
    D: Estimate
    train_s: Estimate
    serve_s: Estimate
    total_s: Estimate
    at_ratio_limit: bool
    """More tokens a parameter than any run had would have cost less still."""
    within_sizes: bool
    """N lies between the smallest and the largest run."""
    draws: np.ndarray
    """Total seconds of each resample."""


def seconds_per_token(
    models: Models, config: ModelConfig, load: Load, stored: BytesPerElement, *, drawn: bool = False
) -> np.ndarray:
    """Device-seconds of one generated token and its share of the prompt: (1,), or (resamples,) if `drawn`.

    A step is taken at the middle of the answer; a batch shares it, and each sequence pays its prefill.
    """
    middle = load.prompt_length + load.generated_length // 2
    parts = []
    for kind, length in (("ttft", load.prompt_length), ("step_time", middle)):
        model = models[config.arch, kind]  # type: ignore[index]
        point = work(kind, config, length, load.batch_size, stored)[None]  # type: ignore[arg-type]
        parts.append(model.predict_draws(point)[0] if drawn else model.predict(point))
    prefill, step = parts
    return (prefill / load.generated_length + step) / load.batch_size


def total_cost(
    trained: Trained, models: Models, load: Load, stored: BytesPerElement, loss: float, *, level: float = 0.95
) -> TotalCost:
    """The best model at a loss, with intervals from the resamples of the law and of the runtime model."""
    found = _optimum(trained, models, load, stored, loss, trained.params[None], drawn=False)
    count = min(len(trained.draws), len(models[trained.arch, "ttft"].draws))
    spread = _optimum(trained, models, load, stored, loss, trained.draws[:count], drawn=True)
    N, D = found["N"][0], found["D"][0]
    sizes = [count_parameters(config) for config in trained.configs]
    names = ("N", "D", "train_s", "serve_s", "total_s")
    return TotalCost(
        arch=trained.arch,
        loss=loss,
        at_ratio_limit=bool(trained.largest_ratio / _SLACK < D / N),
        within_sizes=bool(min(sizes) <= N <= max(sizes)),
        draws=spread["total_s"],
        **{name: _estimate(found[name][0], spread[name], level) for name in names},
    )


def _optimum(
    trained: Trained,
    models: Models,
    load: Load,
    stored: BytesPerElement,
    loss: float,
    params: np.ndarray,
    *,
    drawn: bool,
) -> dict[str, np.ndarray]:
    """Each row of `params` (rows, parameters) at its own optimum."""
    ordered = sorted(trained.configs, key=count_parameters)
    N_built = np.array([count_parameters(config) for config in ordered], dtype=float)
    a_token = np.array(
        [seconds_per_token(models, config, load, stored, drawn=drawn)[: len(params)] for config in ordered]
    )
    serve_s = _smooth(N_built, load.tokens * a_token)
    goal = np.full(len(params), loss)

    def parts(log_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        N = np.exp(log_N)
        D = tokens_for_loss(trained.law, params, N, goal)
        return D, trained.flops(N, D) / trained.flops_per_s, serve_s(N)

    def total(log_N: np.ndarray) -> np.ndarray:
        D, train, serve = parts(log_N)
        with np.errstate(invalid="ignore", over="ignore"):
            beyond = np.maximum(D / np.exp(log_N) / trained.largest_ratio, 1.0)
            cost = (
                train + serve
            ) * beyond**_STEEP  # rises towards what is not allowed, so that a search turns
        return np.where(np.isfinite(D), cost, np.inf)

    log_N = lowest(total, np.full(len(params), np.log(np.sqrt(N_built[0] * N_built[-1]))))
    D, train, serve = parts(log_N)
    reached = np.isfinite(D) & (np.exp(log_N) * trained.largest_ratio * _SLACK >= D)
    found = {"N": np.exp(log_N), "D": D, "train_s": train, "serve_s": serve, "total_s": train + serve}
    return {name: np.where(reached, values, np.nan) for name, values in found.items()}


def _smooth(N: np.ndarray, cost: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Cost against N through sizes (n,), one curve for each column of `cost` (n, rows), read at N (rows,).

    A parabola in the logarithms, or a line for two sizes, continued by its end slopes: real shapes differ in
    more than N, and a curve through each of them would have minima of its own.
    """
    center = np.log(N).mean()
    x, y = np.log(N) - center, np.log(cost)
    if len(x) == 1:
        return lambda at: np.exp(y[0] + np.log(at) - center)
    c = np.polynomial.polynomial.polyfit(x, y, min(len(x) - 1, 2))
    slopes = np.polynomial.polynomial.polyder(c)

    def curve(at: np.ndarray) -> np.ndarray:
        place = np.log(at) - center
        inside = np.clip(place, x.min(), x.max())
        value, slope = (np.polynomial.polynomial.polyval(inside, poly, tensor=False) for poly in (c, slopes))
        return np.exp(value + slope * (place - inside))

    return curve


def _estimate(value: float, draws: np.ndarray, level: float) -> Estimate:
    good = draws[np.isfinite(draws)]
    low, high = (float("nan"), float("nan"))
    if len(good) >= 0.9 * len(draws) and len(good):
        low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    method = f"bootstrap of law and runtime model, {len(good)} of {len(draws)} resamples"
    return Estimate(value=float(value), low=float(low), high=float(high), level=level, method=method)


@dataclass(frozen=True, kw_only=True)
class Cheaper:
    """Two architectures at one loss."""

    loss: float
    better: str
    other: str
    ratio: Estimate
    """Total time of `other` over that of `better`."""
    decided: bool
    """The interval excludes 1."""


def compare_costs(costs: Sequence[TotalCost], level: float = 0.95) -> tuple[Cheaper, ...]:
    """The cheapest architecture against the next at every loss that two reach."""
    found = []
    for loss in dict.fromkeys(cost.loss for cost in costs):
        reached = [c for c in costs if c.loss == loss and np.isfinite(c.total_s.value)]
        if len(reached) < 2:
            continue
        better, other = sorted(reached, key=lambda c: c.total_s.value)[:2]
        count = min(len(better.draws), len(other.draws))
        drawn = other.draws[:count] / better.draws[:count]
        ratio = _estimate(other.total_s.value / better.total_s.value, drawn, level)
        found.append(
            Cheaper(
                loss=loss,
                better=better.arch,
                other=other.arch,
                ratio=ratio,
                decided=ratio.low > 1 or ratio.high < 1,
            )
        )
    return tuple(found)
