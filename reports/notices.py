"""Warnings: what a reader of the numbers must know, by severity, each said once."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from reports import numbers
from reports.palette import arch_label
from reports.view import View, finished
from sweeps.laws.types import Flag, Severity

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")
_SAID_OF_RUNS = ("unfinished-runs", "repeated-data")
"""Flags of a group that the report says itself, once and of the whole sweep, from the run table."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One kind of trouble and everywhere that it was met."""

    code: str
    severity: Severity
    messages: tuple[str, ...]

    @property
    def title(self) -> str:
        """`vertex-outside-grid` as `Vertex outside grid`."""
        return self.code.replace("-", " ").capitalize()


def notices(view: View) -> list[Notice]:
    """Flags of the fits and of the runs, grouped by kind, errors first."""
    by_kind: defaultdict[tuple[Severity, str], dict[str, None]] = defaultdict(dict)
    for flag, where in [*_of_runs(view), *_of_fits(view)]:
        if flag.code not in _SAID_OF_RUNS or not where:
            by_kind[flag.severity, flag.code][_sentence(flag.message, where)] = None
    ordered = sorted(by_kind, key=lambda kind: _ORDER.index(kind[0]))
    return [Notice(severity=s, code=code, messages=tuple(by_kind[s, code])) for s, code in ordered]


def _sentence(message: str, where: str) -> str:
    text = f"{where}: {message}" if where else message[:1].upper() + message[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _of_fits(view: View) -> Iterator[tuple[Flag, str]]:
    """A fit may repeat its parts' flags: equal ones of one group become one message."""
    for group in view.groups:
        parts = (
            *(parabola.flags for parabola in group.parabolas),
            *(law.flags for law in group.power_laws.values()),
            *(fit.flags for fit in group.parametric),
            group.flags,
        )
        yield from ((flag, view.label(group)) for flags in parts for flag in flags)
    yield from ((flag, "") for flag in view.analysis.flags)


def _of_runs(view: View) -> Iterator[tuple[Flag, str]]:
    failed = view.runs.filter(~finished())
    if failed.height:
        message = (
            f"{failed.height} of {view.runs.height} runs did not finish with a loss; the fits go without them"
        )
        yield Flag(code="failed-runs", severity="warning", message=message), ""
    yield from ((flag, "") for flag in _repeated_data(view))
    yield from ((flag, "") for flag in _extrapolated(view))
    yield from _missed(view)


def _repeated_data(view: View) -> Iterator[Flag]:
    """Up to four epochs repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023)."""
    repeated = view.runs.filter(pl.col("epochs") > 1)
    if repeated.height:
        most = repeated.sort("epochs", descending=True).row(0, named=True)
        severity: Severity = "warning" if most["epochs"] > 4 else "info"
        message = (
            f"{repeated.height} of {view.runs.height} runs read some tokens more than once, up to"
            f" {numbers.ratio(most['epochs'])} epochs ({arch_label(most['arch'])},"
            f" {numbers.count(most['N'])} parameters): repeated tokens teach less, a larger corpus cures it"
        )
        yield Flag(code="repeated-data", severity=severity, message=message)


def _missed(view: View) -> Iterator[tuple[Flag, str]]:
    """Answers beyond the trained budgets rest on laws that hold-out runs have put to the test."""
    for outcome in view.missed:
        made, span = outcome.prediction, numbers.span(outcome.prediction.loss, numbers.loss)
        message = (
            f"the hold-out run at {numbers.flops(made.train_flops)} FLOPs came out at"
            f" {numbers.loss(outcome.observed)}, not in {span} as predicted:"
            " intervals beyond the trained budgets are too narrow"
        )
        yield Flag(code="missed-prediction", severity="error", message=message), arch_label(made.arch)


def _extrapolated(view: View) -> Iterator[Flag]:
    top = max(view.trained_budgets, default=None)
    beyond = [budget for budget in view.targets if top is not None and budget > 1.001 * top]
    if top is not None and beyond:
        message = (
            f"answers at {', '.join(numbers.flops(budget) for budget in beyond)} FLOPs lie beyond the largest"
            f" budget that was trained ({numbers.flops(top)})"
        )
        yield Flag(code="extrapolation", severity="warning", message=message)
