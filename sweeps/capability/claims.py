"""The papers' claims, held against the measurements: does each hold at this size, with these seeds?

A claim is a set of comparisons, each a mean difference over seeds with its interval. Beside being ahead, some
claims say that a model can do something: then its own accuracy counts too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sweeps.capability.results import Interval, Results, interval, paired
from sweeps.capability.spec import CapabilitySpec, Experiment, TextSource
from xlstm.capability.task import Task

Finding = Literal["ahead", "behind", "equal", "open"]
Verdict = Literal["holds", "partly", "not resolved", "does not hold", "absent"]

ACCURACY_MARGIN = 0.05
LOSS_MARGIN = 0.02
"""Differences whose interval lies within the margin are none: of accuracies, and of losses in nats."""
SOLVED = 0.5
"""A task counts as mastered where the accuracy's interval lies above this share of the way from chance to
1."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One architecture against another in one measure."""

    subject: str
    other: str
    what: str
    difference: Interval
    """Positive where the subject does better."""
    unit: Literal["accuracy", "nats"] = "accuracy"

    @property
    def finding(self) -> Finding:
        """What the interval says."""
        margin = ACCURACY_MARGIN if self.unit == "accuracy" else LOSS_MARGIN
        if not self.difference.is_known:
            return "open"
        if -margin <= self.difference.low and self.difference.high <= margin:
            return "equal"
        if self.difference.low > 0:
            return "ahead"
        return "behind" if self.difference.high < 0 else "open"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, where it was made, and how it stands here."""

    key: str
    text: str
    source: str
    verdict: Verdict
    comment: str
    comparisons: tuple[Comparison, ...] = ()


def judge(comparisons: tuple[Comparison, ...], masters: bool = True) -> Verdict:
    """Holds where the subjects are ahead everywhere and, if the claim says so, master the task.

    It does not hold where nothing is ahead and something is behind, or all are equal.
    """
    found = [comparison.finding for comparison in comparisons]
    if not found:
        return "absent"
    if all(finding == "ahead" for finding in found) and masters:
        return "holds"
    if "ahead" in found:
        return "partly"
    if "behind" in found or all(finding == "equal" for finding in found):
        return "does not hold"
    return "not resolved"


def claims(suite: CapabilitySpec, results: Results) -> tuple[Claim, ...]:
    """Every claim for whose experiments the suite has a task, in the papers' order."""
    judged: list[Claim] = []
    for experiment in suite.experiments:
        made = (make(experiment, results) for make in _MAKERS[_kind(experiment)])
        judged += [claim for claim in made if claim is not None]
    return tuple(judged)


def _kind(experiment: Experiment) -> str:
    if isinstance(experiment.task, TextSource):
        return "text"
    return str(getattr(experiment.task, "kind"))  # noqa: B009 (every task has one, which the base does not say)


def measure_at(task: Task, *, beyond: bool) -> int:
    """The measured level that a claim looks at: the highest trained one, or the first beyond."""
    trained = [level for level in task.measured if level <= task.trained]
    longer = [level for level in task.measured if level > task.trained]
    return (longer or trained)[0] if beyond else (trained or longer)[-1]


def _present(experiment: Experiment, results: Results, *archs: str) -> list[str]:
    there = results.archs(experiment.name)
    return [arch for arch in archs if arch in there]


def _accuracy(experiment: Experiment, results: Results, subject: str, other: str, level: int) -> Comparison:
    measure = f"accuracy/{level}"
    one, two = (results.values(experiment.name, arch, measure) for arch in (subject, other))
    difference = paired(one, two, results.level)
    return Comparison(subject=subject, other=other, what=f"at {level}", difference=difference)


def _masters(experiment: Experiment, results: Results, arch: str, level: int) -> bool:
    assert isinstance(experiment.task, Task)
    chance = experiment.task.chance(level)
    found = results.mean(experiment.name, arch, f"accuracy/{level}")
    return found.is_known and found.low > chance + SOLVED * (1 - chance)


def _means(experiment: Experiment, results: Results, level: int) -> str:
    assert isinstance(experiment.task, Task)
    told = []
    for arch in results.archs(experiment.name):
        found = results.mean(experiment.name, arch, f"accuracy/{level}")
        told.append(f"{arch} {_share(found)}")
    return f"Accuracy at {level}: {', '.join(told)}; chance {experiment.task.chance(level):.2f}."


def _share(found: Interval) -> str:
    span = f" ({found.low:.2f} to {found.high:.2f})" if found.is_known else ""
    return f"{found.value:.2f}{span}"


def revises(experiment: Experiment, results: Results) -> Claim:
    """Nearest-neighbour search, xLSTM against LSTM."""
    return _task_claim(
        experiment,
        results,
        key="revises",
        text="The xLSTM revises stored values where the LSTM fails",
        source="arXiv:2405.04517, section 1 and figure 2 (nearest-neighbour search)",
        pairs=[(subject, "lstm") for subject in ("xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]")],
        beyond=False,
    )


def tracks_state(experiment: Experiment, results: Results) -> Claim:
    """Formal languages, sLSTM against mLSTM and Transformer, one length beyond the trained one."""
    subjects, others = ("xlstm[0:1]", "xlstm[1:1]"), ("xlstm[1:0]", "transformer")
    return _task_claim(
        experiment,
        results,
        key=f"tracks-state-{experiment.name}",
        text=f"The sLSTM tracks state where mLSTM and Transformer do not ({experiment.name})",
        source="arXiv:2405.04517, section 4.1 (formal languages); arXiv:2207.02098, section 5",
        pairs=[(subject, other) for subject in subjects for other in others],
        beyond=True,
    )


def mixes_memory(experiment: Experiment, results: Results) -> Claim | None:
    """The same with and without memory mixing, where the suite has the ablation."""
    if not _present(experiment, results, "xlstm[0:1]-no-mixing"):
        return None
    return _task_claim(
        experiment,
        results,
        key=f"mixes-memory-{experiment.name}",
        text=f"It is memory mixing that tracks state ({experiment.name})",
        source="arXiv:2405.04517, sections 2.2 and 4.1",
        pairs=[("xlstm[0:1]", "xlstm[0:1]-no-mixing")],
        beyond=True,
    )


def recalls(experiment: Experiment, results: Results) -> Claim:
    """Associative recall, matrix memory against scalar ones."""
    pairs = [(subject, other) for subject in ("xlstm[1:0]", "xlstm[1:1]") for other in ("lstm", "xlstm[0:1]")]
    return _task_claim(
        experiment,
        results,
        key="recalls",
        text="The mLSTM's matrix memory recalls more pairs than the scalar memories of LSTM and sLSTM",
        source="arXiv:2405.04517, section 4.1 (multi-query associative recall); arXiv:2312.04927",
        pairs=pairs,
        beyond=False,
    )


def _task_claim(
    experiment: Experiment,
    results: Results,
    *,
    key: str,
    text: str,
    source: str,
    pairs: list[tuple[str, str]],
    beyond: bool,
) -> Claim:
    assert isinstance(experiment.task, Task)
    level = measure_at(experiment.task, beyond=beyond)
    there = [pair for pair in pairs if len(_present(experiment, results, *pair)) == 2]
    comparisons = tuple(_accuracy(experiment, results, *pair, level) for pair in there)
    masters = all(_masters(experiment, results, subject, level) for subject in {s for s, _ in there})
    comment = _means(experiment, results, level)
    if comparisons and not masters and all(c.finding == "ahead" for c in comparisons):
        comment += " Ahead, but the task is not mastered."
    return Claim(
        key=key,
        text=text,
        source=source,
        verdict=judge(comparisons, masters),
        comment=comment,
        comparisons=comparisons,
    )


def extrapolates(experiment: Experiment, results: Results) -> Claim:
    """Perplexity by position beyond the trained length, xLSTM against Transformer."""
    source = experiment.task
    assert isinstance(source, TextSource)
    subjects = _present(experiment, results, "xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]")
    others = _present(experiment, results, "transformer")
    gaps = {arch: gap_beyond(experiment, results, arch) for arch in results.archs(experiment.name)}
    comparisons = tuple(
        Comparison(
            subject=subject,
            other=other,
            what=f"rise of the loss beyond {source.context_length}",
            difference=paired(gaps[other], gaps[subject], results.level),
            unit="nats",
        )
        for subject in subjects
        for other in others
    )
    means = {arch: interval(list(gap.values()), results.level) for arch, gap in gaps.items()}
    flat = all(means[arch].is_known and means[arch].high < LOSS_MARGIN for arch in subjects)
    told = ", ".join(f"{arch} {_signed(mean)}" for arch, mean in means.items())
    longest = source.times * source.context_length
    return Claim(
        key="extrapolates",
        text="The xLSTM extrapolates in length where the Transformer does not",
        source="arXiv:2405.04517, section 4.3 (sequence length extrapolation)",
        verdict=judge(comparisons, flat),
        comment=(
            f"Mean loss over positions {source.context_length + 1} to {longest} less that over the second"
            f" half of the trained length, nats: {told}."
        ),
        comparisons=comparisons,
    )


def _signed(found: Interval) -> str:
    span = f" ({found.low:+.3f} to {found.high:+.3f})" if found.is_known else ""
    return f"{found.value:+.3f}{span}"


def gap_beyond(experiment: Experiment, results: Results, arch: str) -> dict[int, float]:
    """Rise of the loss from the second half of the trained length to all that is beyond, by seed, in nats."""
    source = experiment.task
    assert isinstance(source, TextSource)
    trained, longest = source.context_length, source.times * source.context_length
    runs = results.chosen(experiment.name, arch)
    found = {}
    for seed, run in runs.items():
        curve = position_curve(run.measures)
        found[seed] = _over(curve, trained, longest) - _over(curve, trained // 2, trained)
    return found


def position_curve(measures: dict[str, float]) -> list[tuple[int, int, float]]:
    """Start, end and mean loss of every band of positions, ascending: positions start + 1 to end."""
    bands = sorted(
        (int(name.removeprefix("position_loss/")), loss)
        for name, loss in measures.items()
        if name.startswith("position_loss/")
    )
    ends = [end for end, _ in bands]
    return [(start, end, loss) for start, (end, loss) in zip([0, *ends[:-1]], bands, strict=True)]


def _over(curve: list[tuple[int, int, float]], start: int, end: int) -> float:
    """Mean loss over positions start + 1 to end, both of which end a band."""
    parts = [(high - low, loss) for low, high, loss in curve if low >= start and high <= end]
    count = sum(width for width, _ in parts)
    return sum(width * loss for width, loss in parts) / count if count else math.nan


def lower_perplexity(experiment: Experiment, results: Results) -> Claim:
    """Perplexity by domain, xLSTM against Transformer and LSTM."""
    subjects = _present(experiment, results, "xlstm[1:0]", "xlstm[1:1]")
    others = _present(experiment, results, "transformer")
    names = domain_names(results, experiment.name)
    comparisons = []
    for subject in subjects:
        for other in others:
            for name in names:
                one, two = (
                    results.values(experiment.name, arch, f"domain_loss/{name}") for arch in (subject, other)
                )
                comparisons.append(
                    Comparison(
                        subject=subject,
                        other=other,
                        what=name,
                        difference=paired(two, one, results.level),
                        unit="nats",
                    )
                )
    ahead = sum(c.finding == "ahead" for c in comparisons)
    behind = sum(c.finding == "behind" for c in comparisons)
    return Claim(
        key="domains",
        text="The xLSTM has lower perplexity than the Transformer in most domains",
        source="arXiv:2405.04517, section 4.3 (xLSTM[1:0] against Llama in 486 of 571 domains of PALOMA)",
        verdict=judge(tuple(comparisons)),
        comment=f"Of {len(comparisons)} comparisons by domain, ahead in {ahead} and behind in {behind}.",
        comparisons=tuple(comparisons),
    )


def domain_names(results: Results, experiment: str) -> list[str]:
    """Domains that the runs of an experiment were measured on."""
    names = (
        name.removeprefix("domain_loss/")
        for outcome in results.outcomes
        if outcome.experiment == experiment
        for name in outcome.measures
        if name.startswith("domain_loss/")
    )
    return list(dict.fromkeys(names))


_MAKERS: dict[str, list[Callable[[Experiment, Results], Claim | None]]] = {
    "search": [revises],
    "parity": [tracks_state, mixes_memory],
    "modular": [tracks_state, mixes_memory],
    "recall": [recalls],
    "text": [extrapolates, lower_perplexity],
}
