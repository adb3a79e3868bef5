"""A sweep while it runs: how full the plan is, the law so far, what failed, and when it will be done."""

from collections.abc import Sequence
from dataclasses import dataclass

from reports import numbers
from reports.embed import template
from reports.palette import arch_label, css_variables
from sweeps.provisional import Provisional

REFRESH_S = 10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one architecture at one budget."""

    arch: str
    budget: float
    done: int
    running: int
    failed: int
    planned: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """The law of one group after a number of finished runs: N* at the budget asked for."""

    runs: int
    N: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """How far the interval reaches from its middle, as a factor: 1 is certainty."""
        return float((self.high / self.low) ** 0.5) if self.low > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Live:
    """One moment of a sweep."""

    sweep: str
    stage: str
    at: str
    """Wall-clock time, as text."""
    cells: Sequence[Cell]
    left_s: float | None
    trainings: Sequence[str]
    failures: Sequence[tuple[str, str]]
    """Run, and why."""
    laws: Sequence[Provisional]
    history: Sequence[tuple[str, Sequence[Step]]]
    """Label of a group, and its law over time, oldest first."""

    def total(self, field: str) -> int:
        return sum(getattr(cell, field) for cell in self.cells)


def label(group: Provisional) -> str:
    """`mLSTM, context 512`."""
    return f"{arch_label(group.arch)}, context {group.context_length:,}"


def says(group: Provisional) -> str:
    """The law so far in a sentence."""
    if group.optimum is None or group.exponent is None:
        return f"{label(group)}: no law yet ({group.note})." if group.note else f"{label(group)}: no law yet."
    best, a = group.optimum, group.exponent
    beyond = ", an extrapolation" if best.is_extrapolated else ""
    return (
        f"{label(group)}: N* ~ C^{numbers.fixed(a.value, 2)} ({_span(a)});"
        f" at {numbers.flops(best.budget)} FLOPs{beyond} N* = {numbers.count(best.N.value)}"
        f" ({numbers.span(best.N)}), loss {numbers.loss(best.loss.value)}"
        f" ({numbers.span(best.loss, numbers.loss)}), from {group.runs} runs."
    )


def _span(estimate: object) -> str:
    return numbers.span(estimate, lambda v: numbers.fixed(v, 2))  # type: ignore[arg-type]


def left(live: Live) -> str:
    """When it will be done."""
    if live.left_s is None:
        return "not known yet"
    return f"about {numbers.duration(live.left_s)}" if live.left_s >= 1 else "none"


def markdown(live: Live) -> str:
    """The moment as Markdown, for an artifact of the flow. Names are code, so that they cannot be markup."""
    head = (
        f"**{live.total('done')} of {live.total('planned')} runs done**, {live.total('running')} running,"
        f" {live.total('failed')} failed; time left: {left(live)}. {live.stage}, {live.at}."
    )
    lines = [head, "", "## The law so far", *(f"- {says(group)}" for group in live.laws)]
    for name, steps in live.history:
        shrunk = ", ".join(f"{step.runs} runs {_width(step)}" for step in steps[-8:])
        lines.append(f"- interval of N* over time, {name}: {shrunk}")
    lines += ["", "## The plan", "", "| architecture | budget | done | running | failed | planned |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {arch_label(c.arch)} | {numbers.flops(c.budget)} | {c.done} | {c.running} | {c.failed} |"
        f" {c.planned} |"
        for c in live.cells
    ]
    if live.failures:
        lines += ["", "## Failures", *(f"- `{_code(run)}`: `{_code(why)}`" for run, why in live.failures)]
    return "\n".join(lines)


def _width(step: Step) -> str:
    return f"x/{numbers.ratio(step.factor)}" if numbers.known(step.factor) else "none"


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def page(live: Live) -> str:
    """The moment as a page that loads itself anew while the sweep goes on."""
    going = live.total("done") + live.total("failed") < live.total("planned")
    return str(
        template("live.html.j2").render(
            live=live,
            left=left(live),
            laws=[says(group) for group in live.laws],
            refresh=REFRESH_S if going else None,
            light=css_variables(1, dark=False),
            dark=css_variables(1, dark=True),
        )
    )
