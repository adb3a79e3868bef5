"""What the runs of a suite measured: learning rates chosen, means over seeds with their intervals."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.stats import t as student

from sweeps.capability.plan import SuiteRun


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of the plan and its measurements by name, as `xlstm.capability.measure` names them."""

    run_key: str
    experiment: str
    arch: str
    seed: int
    peak_lr: float
    N: int
    N_non_embedding: int
    steps: int
    tokens: int
    train_flops: float
    status: str = "finished"
    """finished, failed or missing."""
    error: str | None = None
    measures: dict[str, float] = field(default_factory=dict)
    wall_time_s: float | None = None
    step_time_s: float | None = None
    device: str | None = None
    mlflow_run_id: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def outcome_of(run: SuiteRun, measures: dict[str, float] | None, **known: Any) -> Outcome:
    """The outcome of a planned run; without measurements it is not finished, and `known` says why."""
    return Outcome(
        run_key=run.spec.run_key,
        experiment=run.experiment,
        arch=run.arch,
        seed=run.spec.seed,
        peak_lr=run.spec.optimizer.peak_lr,
        N=run.N,
        N_non_embedding=run.N_non_embedding,
        steps=run.spec.steps,
        tokens=run.spec.tokens,
        train_flops=run.train_flops,
        measures=measures or {},
        **known,
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds with its interval; the ends are nan where fewer than two seeds are there."""

    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = 0.95
    seeds: int = 0

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interval(values: Sequence[float], level: float, *, within: tuple[float, float] | None = None) -> Interval:
    """Mean of independent seeds with Student's interval, cut to what is possible at all.

    A few seeds that either learn a task or do not are far from normal: read a wide interval as such.
    """
    count = len(values)
    if not count:
        return Interval(value=math.nan, level=level)
    mean = statistics.fmean(values)
    if count < 2:
        return Interval(value=mean, level=level, seeds=count)
    half = float(student.ppf((1 + level) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    low, high = mean - half, mean + half
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return Interval(value=mean, low=low, high=high, level=level, seeds=count)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The finished runs that count: of every experiment and architecture, those at its best learning rate."""

    outcomes: tuple[Outcome, ...]
    """All of the plan, finished or not."""
    level: float = 0.95

    def chosen(self, experiment: str, arch: str) -> dict[int, Outcome]:
        """Runs by seed at the learning rate whose held-out measure is best in the mean over seeds.

        Chosen by accuracy of generated tasks and by loss of text, on examples that nothing else is measured
        on. A rate that lost a seed, as to divergence, is behind those that lost fewer.
        """
        by_rate: dict[float, dict[int, Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.experiment == experiment and outcome.arch == arch and outcome.is_finished:
                by_rate.setdefault(outcome.peak_lr, {})[outcome.seed] = outcome
        if not by_rate:
            return {}
        return max(by_rate.values(), key=lambda runs: (len(runs), *_held_out(runs.values())))

    def values(self, experiment: str, arch: str, measure: str) -> dict[int, float]:
        """A measurement of the chosen runs, by seed."""
        chosen = self.chosen(experiment, arch)
        return {seed: run.measures[measure] for seed, run in chosen.items() if measure in run.measures}

    def mean(self, experiment: str, arch: str, measure: str) -> Interval:
        """Of a measurement over seeds; an accuracy stays within 0 and 1."""
        bounds = (0.0, 1.0) if measure.startswith("accuracy") else None
        return interval(list(self.values(experiment, arch, measure).values()), self.level, within=bounds)

    def archs(self, experiment: str) -> tuple[str, ...]:
        """Architectures with finished runs, in the plan's order."""
        found = (o.arch for o in self.outcomes if o.experiment == experiment and o.is_finished)
        return tuple(dict.fromkeys(found))

    def size(self, experiment: str, arch: str) -> int:
        """N of an architecture's models."""
        return next(o.N for o in self.outcomes if o.experiment == experiment and o.arch == arch)


def paired(one: dict[int, float], other: dict[int, float], level: float) -> Interval:
    """Mean of one minus other over the seeds that both have: they saw the same examples in the same order."""
    return interval([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())], level)


def _held_out(runs: Iterable[Outcome]) -> tuple[float, float]:
    """To be maximised: mean accuracy where answers are right or wrong, then loss, lower being better."""
    runs = list(runs)
    loss = statistics.fmean(run.measures["loss"] for run in runs)
    is_text = any(name.startswith("domain_loss/") for name in runs[0].measures)
    accuracy = 0.0 if is_text else statistics.fmean(run.measures["accuracy"] for run in runs)
    return accuracy, -loss
