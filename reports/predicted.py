"""Hold-out runs in the report: what was said before each was trained, and what came of it."""

from collections.abc import Iterator
from datetime import datetime
from itertools import combinations

from reports import numbers
from reports.cells import Cell, Table, estimate, left, number, right, yes
from reports.tables import group_cells, group_columns
from reports.view import View
from sweeps.predicted import Outcome


def predicted_runs(view: View) -> Table:
    """Runs beyond the grid, each predicted before the first of its steps."""
    rows = []
    for outcome in view.predicted:
        said = outcome.prediction
        rows.append(
            (
                *group_cells(view, said.arch, said.context_length),
                number(said.train_flops, numbers.flops),
                number(said.budget / said.largest_budget, lambda v: f"{numbers.times(v)} x"),
                number(said.N, numbers.count),
                number(said.D, numbers.count),
                Cell(_moment(said.predicted_at), said.predicted_at),
                *estimate(said.loss, numbers.loss),
                number(outcome.observed, numbers.loss) if outcome.observed else Cell(_why(outcome)),
                number(outcome.miss, lambda v: "" if v is None else f"{numbers.fixed(100 * v, 2)}%"),
                Cell("") if outcome.inside is None else yes(outcome.inside),
            )
        )
    return Table(
        key="predicted-runs",
        caption=(
            "Runs beyond the grid, which no fit has seen: their loss as the law of the grid predicted it,"
            " before they were trained, and their loss as it came out. The interval is that of a new run:"
            " the law's own uncertainty and the noise that the law leaves in its runs."
        ),
        columns=(
            *group_columns(view),
            *right("C", "Of the largest", "N", "D"),
            *left("Predicted at"),
            *right("Predicted loss", "interval", "Loss", "Off by"),
            *left("Inside"),
        ),
        rows=tuple(rows),
    )


def verdicts(view: View) -> list[str]:
    """The outcome of each hold-out run in a sentence, and by what two architectures differ."""
    return [*_each(view), *_between(view)]


def _each(view: View) -> list[str]:
    said = []
    for outcome in view.predicted:
        if outcome.observed is None or outcome.miss is None:
            continue
        made, span = outcome.prediction, numbers.span(outcome.prediction.loss, numbers.loss)
        inside = {True: ", inside the interval", False: ", outside the interval", None: ""}[outcome.inside]
        times = numbers.times(made.budget / made.largest_budget)
        name = group_cells(view, made.arch, made.context_length)[0].text
        said.append(
            f"{name} at {times} times the largest budget: {numbers.loss(made.loss.value)} ({span}) was"
            f" predicted, {numbers.loss(outcome.observed)} came out,"
            f" {numbers.fixed(100 * outcome.miss, 2)}% off{inside}."
        )
    return said


def _between(view: View) -> Iterator[str]:
    """Where two runs of one budget and context length are finished: their own sizes, not the best ones."""
    done = [(o.prediction, o.observed) for o in view.predicted if o.observed is not None]
    for (one, found), (other, beside) in combinations(done, 2):
        if (one.context_length, one.budget) != (other.context_length, other.budget) or one.arch == other.arch:
            continue
        names = [group_cells(view, p.arch, p.context_length)[0].text for p in (one, other)]
        yield (
            f"Between them: the {names[0]} was predicted {_signed(one.loss.value - other.loss.value)}"
            f" {view.loss_unit} against the {names[1]}, and came out at {_signed(found - beside)}."
        )


def _signed(difference: float) -> str:
    """Of two losses: as many decimals as `numbers.loss` gives either."""
    return numbers.signed(difference, 3)


def _why(outcome: Outcome) -> str:
    return "not trained yet" if outcome.status == "missing" else str(outcome.error or outcome.status)


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return f"{moment:%-d %b %Y, %H:%M:%S} {moment.tzname() or ''}".strip()
