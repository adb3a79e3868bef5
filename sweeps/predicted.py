"""Hold-out runs: beyond the grid, their loss predicted by the law of the grid before they are trained."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sweeps.grid import ladder_configs
from sweeps.laws.intervals import estimate
from sweeps.laws.predictions import identified, law_and_params
from sweeps.laws.types import Analysis, Estimate, GroupAnalysis, LawFit, OptimumPrediction
from sweeps.plan import PlannedRun, planned_run
from sweeps.spec import SweepSpec
from xlstm.accounting import count_parameters
from xlstm.run_spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a law says of one run, and where it comes from."""

    run_key: str
    run_name: str
    arch: str
    context_length: int
    budget: float
    N: float
    D: float
    train_flops: float
    loss: Estimate
    """With the interval of a new run: the law's own uncertainty, and the noise that it leaves in its runs."""
    law_loss: Estimate
    """With the interval of the law alone."""
    method: str
    optimum_N: float
    """N* at the budget, to which the run's size is the nearest rung."""
    n_runs: int
    """Runs that the law was fitted to."""
    largest_budget: float
    predicted_at: str
    """UTC, ISO 8601."""

    @property
    def tags(self) -> dict[str, str]:
        """For the run's own record: what was said of it before it began."""
        said = {
            "loss": self.loss.value,
            "low": self.loss.low,
            "high": self.loss.high,
            "level": self.loss.level,
        }
        tags = {f"isoflop.predicted.{name}": repr(value) for name, value in said.items()}
        return {**tags, "isoflop.predicted.at": self.predicted_at, "isoflop.predicted.by": self.method}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Prediction":
        return cls(
            **{**fields, "loss": Estimate(**fields["loss"]), "law_loss": Estimate(**fields["law_loss"])}
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A prediction beside what came of the run."""

    prediction: Prediction
    observed: float | None
    """None while the run is not finished."""
    status: str
    error: str | None = None

    @property
    def miss(self) -> float | None:
        """Observed over predicted, less 1."""
        return None if self.observed is None else self.observed / self.prediction.loss.value - 1

    @property
    def inside(self) -> bool | None:
        """Whether the interval holds what was observed; None without either."""
        low, high = self.prediction.loss.low, self.prediction.loss.high
        if self.observed is None or not (math.isfinite(low) and math.isfinite(high)):
            return None
        return low <= self.observed <= high


def hold_out_runs(spec: SweepSpec, analysis: Analysis, data: DataSpec, vocab_size: int) -> list[PlannedRun]:
    """A run an architecture and context length, of the rung nearest to N* at the hold-out's budget.

    `analysis` is made with `SweepSpec.law_settings`, which asks for that budget. Groups without an answer
    there have no run.
    """
    runs = []
    for group in analysis.groups:
        budget = spec.holdout_budget(group.context_length)
        best = None if budget is None else _optimum(group, budget)
        if budget is None or best is None:
            continue
        configs = ladder_configs(spec, group.arch, vocab_size)  # type: ignore[arg-type]
        nearest = min(configs, key=lambda config: abs(math.log(count_parameters(config) / best.N.value)))
        runs.append(planned_run(spec, nearest, group.context_length, budget, spec.seeds[0], data))
    return runs


def predict_run(run: PlannedRun, analysis: Analysis, predicted_at: str) -> Prediction:
    """The loss of a planned run: by its group's law at the run's own N and D, or, where that has no
    interval or is not identified, L* of its budget by another method.

    `analysis` must hold the draws of its laws; without resamples there are no intervals.
    """
    (group,) = (
        g for g in analysis.groups if (g.arch, g.context_length) == (run.arch, run.spec.context_length)
    )
    best = _optimum(group, run.budget)
    assert best is not None, "hold_out_runs plans none for such a group"
    law_loss, loss, method = _answers(group, run, analysis, best)
    return Prediction(
        run_key=run.run_key,
        run_name=run.name,
        arch=run.arch,
        context_length=run.spec.context_length,
        budget=run.budget,
        N=float(run.N),
        D=float(run.D),
        train_flops=run.train_flops,
        loss=loss,
        law_loss=law_loss,
        method=method,
        optimum_N=best.N.value,
        n_runs=group.n_runs,
        largest_budget=run.budget / best.extrapolation,
        predicted_at=predicted_at,
    )


def _optimum(group: GroupAnalysis, budget: float) -> OptimumPrediction | None:
    """What the method that the fits put first says of a budget."""
    return next(
        (
            o
            for o in group.optima
            if math.isclose(o.budget, budget, rel_tol=1e-6) and math.isfinite(o.N.value)
        ),
        None,
    )


def _answers(
    group: GroupAnalysis, run: PlannedRun, analysis: Analysis, best: OptimumPrediction
) -> tuple[Estimate, Estimate, str]:
    """The first method in the order of trust that gives an interval; without any, the first."""
    laws = [fit for fit in group.parametric[:1] if identified(fit)]
    found = [(*_by_law(fit, run, analysis), f"{fit.law} law, {fit.estimator}") for fit in laws]
    there = [o for o in group.optima if math.isclose(o.budget, best.budget, rel_tol=1e-6)]
    found += [(o.loss, o.loss, f"L* by {o.method}") for o in there if math.isfinite(o.loss.value)]
    return next((answer for answer in found if math.isfinite(answer[1].low + answer[1].high)), found[0])


def _by_law(fit: LawFit, run: PlannedRun, analysis: Analysis) -> tuple[Estimate, Estimate]:
    """The law's loss at a run's N and D: with the law's interval, and with that of a new run.

    The noise of ln L is taken as normal, as wide as what the law left over in its own runs.
    """
    law, params = law_and_params(fit)
    at = {"N": np.array([float(run.N)]), "D": np.array([float(run.D)]), "C": np.array([run.train_flops])}
    value = float(law.predict(params, **at)[0])
    level, seed = float(str(analysis.settings["level"])), int(str(analysis.settings["seed"]))
    if fit.draws is None:
        return estimate(value, None, level, ""), estimate(value, None, level, "")
    drawn = law.predict(fit.draws, **at)[:, 0]
    noise = np.random.default_rng(seed).normal(scale=float(fit.diagnostics["residual_rms"]), size=len(drawn))
    how = next(iter(fit.params.values())).method
    return (
        estimate(value, drawn, level, how),
        estimate(value, drawn * np.exp(noise), level, f"{how}, and the noise of a run"),
    )
