"""The answer in words: which architecture, which size, how many tokens, and how sure."""

from dataclasses import dataclass
from typing import Literal

from reports import numbers
from reports.palette import arch_label
from reports.view import View, best_optimum, same
from sweeps.laws.types import Comparison, Estimate, GroupAnalysis, OptimumPrediction
from sweeps.predicted import Outcome

Standing = Literal["decided", "undecided", "single", "none"]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What one architecture would do best at a budget."""

    label: str
    color: int
    """Place of the architecture among the colours."""
    ahead: bool
    """Decidedly better than every other architecture here."""
    headline: str
    """`45.2 k parameters on 3.69 M tokens`"""
    sentences: tuple[str, ...]
    outside: bool
    """The size is smaller or larger than any that was trained, at a budget that was."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer at one budget and one context length."""

    context_length: int
    budget: float
    standing: Standing
    claim: str
    """A clause that follows `At 1.0e12 FLOPs`: `the Transformer beats the mLSTM`."""
    sentences: tuple[str, ...]
    """How far apart, how sure, and whether it is extrapolated."""
    extrapolated: bool
    missed: bool
    """Extrapolated by laws that a hold-out run has left."""
    recommendations: tuple[Recommendation, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first screen."""

    headline: str
    verdicts: tuple[Verdict, ...]
    """One a context length, at the headline's budget."""
    others: tuple[str, ...]
    """One sentence for each further target, the top of the grid included."""


def answer(view: View) -> Answer:
    """The answer at the largest target budget, or at the top of the grid where no target was set."""
    budgets = view.headline_budgets
    if not budgets or not view.groups:
        return Answer(headline="These runs do not support an answer.", verdicts=(), others=())
    verdicts = [verdict(view, context, budgets[0]) for context in view.contexts]
    others = [_in_one_sentence(view, context, b) for b in budgets[1:] for context in view.contexts]
    return Answer(headline=_headline(verdicts), verdicts=tuple(verdicts), others=tuple(others))


def verdict(view: View, context_length: int, budget: float) -> Verdict:
    """What the fits say at one context length and budget."""
    comparisons = view.comparisons(context_length, budget)
    groups = view.at_context(context_length)
    found = list(zip(groups, _by_one_method(groups, budget, comparisons), strict=True))
    optima = [(group, optimum) for group, optimum in found if optimum is not None]
    winner = _winner(comparisons)
    standing, claim = _claim(optima, comparisons, winner, [group for group, o in found if o is None])
    sentences = [compare(c, view.loss_unit) for c in comparisons]
    extrapolated = extrapolation(_extrapolation(groups, budget)) is not None
    missed = [o for o in view.missed if extrapolated and o.prediction.context_length == context_length]
    return Verdict(
        context_length=context_length,
        budget=budget,
        standing=standing,
        claim=claim,
        sentences=(*sentences, *_caveats(found, budget), *_misses(missed)),
        extrapolated=extrapolated,
        missed=bool(missed),
        recommendations=tuple(_recommend(view, group, o, group.arch == winner) for group, o in optima),
    )


def _by_one_method(
    groups: list[GroupAnalysis], budget: float, comparisons: list[Comparison]
) -> list[OptimumPrediction | None]:
    """Each group's answer, by the method that compares them: losses side by side must be of one kind.

    Where the groups are not compared, or one has no answer by that method, each has its best.
    """
    kinds = {_kind(comparison.method) for comparison in comparisons}
    if len(kinds) == 1:
        kind = kinds.pop()
        alike = [
            next((o for o in group.optima if same(o.budget, budget) and _kind(o.method) == kind), None)
            for group in groups
        ]
        if all(optimum is not None for optimum in alike):
            return alike
    return [best_optimum(group, budget) for group in groups]


def _kind(method: str) -> str:
    """`isoflop` of `isoflop power laws`, `chinchilla` of `chinchilla law, sum of Huber`."""
    return method.replace(",", " ").split(" ")[0]


def compare(comparison: Comparison, unit: str) -> str:
    """Two architectures at their optima. An interval that holds 0 decides nothing: the sentence says so."""
    better, other = arch_label(comparison.better), arch_label(comparison.other)
    gap = -comparison.loss_difference
    level = numbers.level(gap)
    if decided(comparison):
        return (
            f"The best loss of the {better} is {numbers.loss(gap.value)} {unit} below that of the {other}"
            f" ({level} interval {numbers.span(gap, numbers.loss)}).{_compute_ratio(comparison)}"
        )
    by = f"{numbers.loss(gap.value)} {unit}"
    lead = f"The best loss of the {better} is estimated {by} below that of the {other}"
    if not numbers.has_interval(gap):
        return f"{lead}, but no interval could be computed: this decides nothing."
    holds = "does not bear that out" if numbers.excludes(gap, 0.0) else "holds 0"
    span = numbers.span(gap, numbers.loss)
    return f"{lead}, but the {level} interval of the difference, {span}, {holds}: this decides nothing."


def decided(comparison: Comparison) -> bool:
    """True where the fits call it decided and the whole interval says that `better` is better."""
    return comparison.decided and comparison.loss_difference.high < 0


def extrapolation(factor: float) -> str | None:
    """The sentence that an extrapolated answer carries; None for an interpolated one."""
    if factor <= 1.001:
        return None
    return f"This is an extrapolation: {numbers.times(factor)} times the largest budget that was trained."


def _headline(verdicts: list[Verdict]) -> str:
    start = _start(verdicts[0])
    if len(verdicts) == 1:
        return f"{start}, {verdicts[0].claim}{_advice(verdicts[0])}."
    claims = {v.claim for v in verdicts}
    if len(claims) == 1:
        contexts = _listed([str(v.context_length) for v in verdicts])
        return f"{start}, {verdicts[0].claim}, at every context length tried ({contexts})."
    return f"{start}: " + "; ".join(f"at context {v.context_length}, {v.claim}" for v in verdicts) + "."


def _start(this: Verdict) -> str:
    """The headline alone must not sell an extrapolation as a measurement."""
    return f"{'Extrapolated to' if this.extrapolated else 'At'} {numbers.flops(this.budget)} FLOPs"


def _advice(this: Verdict) -> str:
    winners = [r for r in this.recommendations if r.ahead]
    return f": train {winners[0].headline}" if winners else ""


def _in_one_sentence(view: View, context_length: int, budget: float) -> str:
    this = verdict(view, context_length, budget)
    where = f" and context {context_length}" if len(view.contexts) > 1 else ""
    several = len(this.recommendations) > 1
    sizes = "; ".join(f"{r.label}: {r.headline}" for r in this.recommendations)
    return f"{_start(this)}{where}, {this.claim}" + (f" ({sizes})." if several else ".")


def _winner(comparisons: list[Comparison]) -> str | None:
    archs = {arch for c in comparisons for arch in (c.better, c.other)}
    for arch in archs:
        beaten = {c.other for c in comparisons if c.better == arch and decided(c)}
        if beaten == archs - {arch}:
            return arch
    return None


def _claim(
    optima: list[tuple[GroupAnalysis, OptimumPrediction]],
    comparisons: list[Comparison],
    winner: str | None,
    silent: list[GroupAnalysis],
) -> tuple[Standing, str]:
    labels = [arch_label(group.arch) for group, _ in optima]
    if not optima:
        return "none", f"the runs support no answer for {_the([arch_label(g.arch) for g in silent])}"
    if len(optima) == 1 and silent:
        return "undecided", f"these runs support a prediction for the {labels[0]} alone"
    if len(optima) == 1:
        return "single", f"the {labels[0]} does best with {_size(optima[0][1])}"
    if not comparisons:
        return "undecided", f"{_the(labels)} could not be compared"
    if winner is None:
        return "undecided", f"these runs do not decide between {_the(labels)}"
    beaten = [label for label in labels if label != arch_label(winner)]
    return "decided", f"the {arch_label(winner)} beats {_the(beaten)}"


def _recommend(view: View, group: GroupAnalysis, optimum: OptimumPrediction, ahead: bool) -> Recommendation:
    low, high = view.trained_sizes(group)
    outside = not optimum.is_extrapolated and not low <= optimum.N.value <= high
    span = f"{numbers.count(low)} to {numbers.count(high)}"
    return Recommendation(
        label=arch_label(group.arch),
        color=view.archs.index(group.arch),
        ahead=ahead,
        headline=_size(optimum),
        outside=outside,
        sentences=(
            *(
                [f"Not among the sizes trained ({span} parameters): the grid does not hold it."]
                if outside
                else []
            ),
            _sizes_with_intervals(optimum),
            _expected_loss(view, optimum.loss),
            f"{numbers.ratio(optimum.D.value / optimum.N.value)} tokens a parameter.",
            f"By {view.method_label(optimum)}, from {group.n_runs} runs.",
            *_second_opinion(view, group, optimum),
        ),
    )


def _sizes_with_intervals(optimum: OptimumPrediction) -> str:
    if not numbers.has_interval(optimum.N):
        return "No interval could be computed: how sure this is stays open."
    return (
        f"{numbers.level(optimum.N)} intervals: {numbers.span(optimum.N)} parameters,"
        f" {numbers.span(optimum.D)} tokens."
    )


def _expected_loss(view: View, loss: Estimate) -> str:
    bits = view.bits_per_byte(loss.value)
    tail = f", {numbers.loss(bits)} bits per byte" if bits is not None else ""
    value = f"{numbers.loss(loss.value)} {view.loss_unit}"
    return f"Loss {value} ({numbers.span(loss, numbers.loss)}){tail}."


def _second_opinion(view: View, group: GroupAnalysis, first: OptimumPrediction) -> list[str]:
    """What the next method says at the same budget: agreement is worth as much as an interval."""
    others = [o for o in group.optima if same(o.budget, first.budget) and o.method != first.method]
    return [
        f"By {view.method_label(o)}: {_size(o)}, loss {numbers.loss(o.loss.value)}."
        f"{_disagreement(first.loss, o.loss)}"
        for o in others[:1]
    ]


def _disagreement(one: Estimate, two: Estimate) -> str:
    """Nothing where either loss lies in the interval of the other, or has none."""
    if not (numbers.excludes(one, two.value) and numbers.excludes(two, one.value)):
        return ""
    return " The two losses lie outside each other's intervals: at least one of these is too narrow."


def _caveats(found: list[tuple[GroupAnalysis, OptimumPrediction | None]], budget: float) -> list[str]:
    groups = [group for group, _ in found]
    silent = [arch_label(group.arch) for group, optimum in found if optimum is None]
    sentence = extrapolation(_extrapolation(groups, budget))
    lines = [sentence] if sentence else []
    if silent and len(silent) < len(found):
        lines.append(f"The runs support no prediction for {_the(silent)} at this budget.")
    return lines


def _misses(missed: list[Outcome]) -> list[str]:
    if not missed:
        return []
    labels = [f"the {arch_label(outcome.prediction.arch)}'s" for outcome in missed]
    budget = numbers.flops(missed[0].prediction.budget)
    runs, its = ("hold-out run", "its") if len(missed) == 1 else ("hold-out runs", "their")
    return [
        f"Do not rely on it: {_listed(labels)} {runs} at {budget} FLOPs left {its} predicted"
        f" interval{'s' if len(missed) > 1 else ''}, so that those given here are too narrow."
    ]


def _extrapolation(groups: list[GroupAnalysis], budget: float) -> float:
    optima = [best_optimum(group, budget) for group in groups]
    return max((o.extrapolation for o in optima if o is not None), default=1.0)


def _compute_ratio(comparison: Comparison) -> str:
    ratio, other = comparison.compute_ratio, arch_label(comparison.other)
    if ratio.value == float("inf"):
        return f" By its own law the {other} reaches that loss at no budget."
    if not numbers.known(ratio.value):
        return ""
    interval = "" if numbers.span(ratio) == "no interval" else f" ({numbers.span(ratio, numbers.ratio)})"
    return f" The {other} needs {numbers.ratio(ratio.value)} times the compute{interval} for the same loss."


def _size(optimum: OptimumPrediction) -> str:
    return f"{numbers.count(optimum.N.value)} parameters on {numbers.count(optimum.D.value)} tokens"


def _the(labels: list[str]) -> str:
    return _listed([f"the {label}" for label in labels])


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
