"""The tables that judge: paper prints and we get, mistakes, statements and their numbers."""

from collections.abc import Iterable, Sequence

import numpy as np

from reports import numbers
from reports.cells import Cell, Table, estimate, integer, left, number, right, yes
from reports.study.forms import digits, form_of, places
from sweeps.study.erratum import Erratum
from sweeps.study.reproduction import Row
from sweeps.study.statements import Statement

STANDINGS = {
    "reproduced": "as printed",
    "clean": "without the copies",
    "lower": "lower minimum",
    "differs": "differs",
    "absent": "data not given",
}


VERDICTS = {
    "supported": "Supported",
    "partly": "Supported in part",
    "consistent": "Not rejected",
    "undecided": "Not decided",
    "contradicted": "Not borne out",
    "absent": "Data not given",
}


def reproduction(rows: Sequence[Row]) -> Table:
    """Paper prints, we get, difference."""
    return Table(
        key="reproduction",
        caption=(
            f"All {len(rows)} numbers. Difference: ours minus the printed one, relative unless the tolerance"
            " is absolute. Without the copies: the printed number is of runs of which 32 stand twice, and"
            " ours is what the authors' method gives on each run once. Lower minimum: the objective of the"
            " printed parameters on these runs, and ours."
        ),
        columns=(
            *left("Part", "Number"),
            *right("Paper prints", "We get", "Difference", "Tolerance"),
            *left("Standing"),
            *right("Their objective here", "Ours"),
            *left("Remark"),
        ),
        rows=tuple(_reproduced(row) for row in rows),
    )


def _reproduced(row: Row) -> tuple[Cell, ...]:
    theirs, ours = row.objectives if row.objectives else (float("nan"), float("nan"))
    form = digits(7) if row.tolerance else numbers.plain
    sign = (lambda v: numbers.scientific(v) if v else "0") if row.relative else places(7)
    gap = row.difference if np.isfinite(row.got) else float("nan")
    tolerance = f"{row.tolerance:.0e}" + ("" if row.relative else " abs") if row.tolerance else "exact"
    return (
        Cell(row.group),
        Cell(row.what),
        number(row.printed, form),
        number(row.got, form),
        number(gap, sign),
        Cell(tolerance, mark="quiet"),
        Cell(STANDINGS[row.standing], mark="bad" if row.standing == "differs" else ""),
        number(theirs, digits(7)),
        number(ours, digits(7)),
        Cell(row.note, mark="quiet"),
    )


def tally(rows: Sequence[Row]) -> Table:
    """How many numbers of each part stand how."""
    groups = list(dict.fromkeys(row.group for row in rows))
    kinds = list(STANDINGS)
    counted = [
        (group, [sum(row.group == group and row.standing == kind for row in rows) for kind in kinds])
        for group in groups
    ]
    total = ("All", [sum(row.standing == kind for row in rows) for kind in kinds])
    return Table(
        key="tally",
        caption="The printed numbers by part and standing; each stands in the table below.",
        columns=(*left("Part"), *right(*(name.capitalize() for name in STANDINGS.values()))),
        rows=tuple(
            (Cell(group), *(Cell(str(n) if n else "", n) for n in counts))
            for group, counts in [*counted, total]
        ),
    )


def erratum(found: Erratum) -> Table:
    """Published, their method on these data, ours."""
    return Table(
        key=f"erratum-{found.key}",
        caption="What is published, what their method gives on the data here, and what we give.",
        columns=(*left("Number"), *right("Published", "Their method here", "Ours", "Interval")),
        rows=tuple(
            (
                Cell(row.what),
                number(row.published, form_of(row.form)),
                number(row.repeated, form_of(row.form)),
                *estimate(row.ours, form_of(row.form)),
            )
            for row in found.rows
        ),
    )


def evidence(statement: Statement) -> Table:
    """The numbers behind a statement."""
    return Table(
        key=f"statement-{statement.key}",
        caption=statement.claim + ".",
        columns=(*left("Number"), *right("Value", "Interval"), *left("Bears it out", "Interval by")),
        rows=tuple(
            (
                Cell(e.what),
                *estimate(e.value, form_of(e.form)),
                yes(e.bears_out),
                Cell(e.value.method, mark="quiet"),
            )
            for e in statement.evidence
        ),
    )


def statements(found: Iterable[Statement]) -> Table:
    """All statements at a glance."""
    return Table(
        key="statements",
        caption="The conclusions and how they stand.",
        columns=(*left("Statement", "Standing"), *right("Numbers", "of which bear it out")),
        rows=tuple(
            (
                Cell(s.claim),
                Cell(VERDICTS[s.verdict]),
                integer(len(s.evidence)),
                integer(sum(e.bears_out for e in s.evidence)),
            )
            for s in found
        ),
    )
