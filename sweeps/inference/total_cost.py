"""Training and serving together: the model of least device time that reaches a loss, by architecture.

The laws of a sweep say which models reach a loss and what they take to train; the runtime model says what
they take to serve. Both are device-seconds here, so that the sum is what the choice of a model costs
(arXiv:2401.00448 counts FLOPs for both, which decoding, bound by memory, does not follow).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.inference.runtime import Models, work
from sweeps.laws import Estimate
from sweeps.laws.forms import Law
from sweeps.laws.inference_cost import serving_optimum
from sweeps.laws.inputs import FlopFunction
from xlstm.accounting import BytesPerElement, count_parameters
from xlstm.config import ModelConfig


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
    budget: float
    """A training budget of the sweep, from where the search starts."""
    flops_per_s: float
    """Speed of training."""
    configs: tuple[ModelConfig, ...]
    """Shapes along which a size grows; costs of serving between and beyond them follow lines in the
    logarithms."""


@dataclass(frozen=True, kw_only=True)
class TotalCost:
    """The model of least total time at one loss. Seconds of one device; nan where the loss is out of reach."""

    arch: str
    loss: float
    N: Estimate
    D: Estimate
    train_s: Estimate
    serve_s: Estimate
    total_s: Estimate
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
    names = ("N", "D", "train_s", "serve_s", "total_s")
    return TotalCost(
        arch=trained.arch,
        loss=loss,
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
    ordered = sorted(trained.configs, key=count_parameters)
    log_N = np.log([count_parameters(config) for config in ordered])
    a_token = [seconds_per_token(models, config, load, stored, drawn=drawn) for config in ordered]
    log_cost = np.log(np.array(a_token))[:, : len(params)]

    def serving(N: np.ndarray) -> np.ndarray:
        """In FLOPs that training would have done in the time."""
        return load.tokens * np.exp(_along(log_N, log_cost, np.log(N))) * trained.flops_per_s

    best = serving_optimum(
        trained.law, params, trained.budget, serving, flops=trained.flops, loss=loss
    )
    return {
        "N": best.N,
        "D": best.D,
        "train_s": best.train_flops / trained.flops_per_s,
        "serve_s": best.inference_flops / trained.flops_per_s,
        "total_s": best.total_flops / trained.flops_per_s,
    }


def _along(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lines through (x, y[:, row]) at `at` (rows,), one point a row, continued beyond the ends."""
    if len(x) == 1:
        return y[0] + (at - x[0])  # cost in proportion to N
    j = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    rows = np.arange(len(at))
    slope = (y[j + 1, rows] - y[j, rows]) / (x[j + 1] - x[j])
    return y[j, rows] + slope * (at - x[j])


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
