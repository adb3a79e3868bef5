"""Tables as data: text for the eye beside full precision for sorting and for the CSV that the page offers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Literal

import numpy as np

from reports import numbers
from sweeps.laws.types import Estimate

Form = Callable[[float | None], str]
Row = Mapping[str, object]

_GREEK = ("alpha", "beta", "gamma", "delta", "kappa")
_LONG = 34
"""Characters from which a text may break into lines."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading; numbers stand right."""

    title: str
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Cell:
    """What is shown, and where it differs, the value behind it."""

    text: str
    value: float | str | None = None
    href: str | None = None
    mark: str = ""
    """A CSS class: `bad`, `quiet`."""
    owner: tuple[Literal["arch", "context"], str | int] | None = None
    """What the row goes with when the reader switches it off."""

    @property
    def data(self) -> str | None:
        """The value at full precision where the text does not say it."""
        if self.value is None or isinstance(self.value, str):
            return self.value
        exact = repr(int(self.value)) if float(self.value).is_integer() else repr(float(self.value))
        return None if exact == self.text else exact

    @property
    def classes(self) -> str:
        """`mark`, and leave to wrap for a long text."""
        return f"{self.mark} long".strip() if len(self.text) > _LONG else self.mark


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings, with a caption that says what they are."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def left(*titles: str) -> tuple[Column, ...]:
    """Columns of text."""
    return tuple(Column(title=title, align="left") for title in titles)


def right(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(title=title) for title in titles)


def number(value: float | None, form: Form) -> Cell:
    """A number as `form` writes it; an empty cell where it is not known."""
    return Cell(form(value), value) if numbers.known(value) else Cell("")


def integer(value: int | None) -> Cell:
    """A whole number with separators; an empty cell where it is not known."""
    return Cell("") if value is None else Cell(f"{value:,}", value)


def estimate(value: Estimate, form: Form) -> tuple[Cell, Cell]:
    """The value and, in a cell of its own, its interval."""
    span = numbers.span(value, form)
    return number(value.value, form), Cell("" if span == "no interval" else span, mark="quiet")


def yes(truth: bool) -> Cell:
    """Yes, or a no that stands out."""
    return Cell("yes") if truth else Cell("no", mark="bad")


def generic(value: object) -> Cell:
    """Any value of a diagnostics table."""
    if isinstance(value, Estimate):
        return Cell(f"{numbers.plain(value.value)} ({numbers.span(value, numbers.plain)})", value.value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return Cell("; ".join(generic(entry).text for entry in value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(numbers.plain(value))
    return number(value, numbers.plain)


def compact(table: Table) -> Table:
    """Without the columns that are empty in every row."""
    kept = [i for i in range(len(table.columns)) if any(row[i].text for row in table.rows)]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )


def spoken(name: object) -> str:
    """`quadratic_zone_share` as `Quadratic zone share`; symbols stay as they are."""
    words = str(name).replace("_", " ").replace("-", " ")
    symbol = len(words) <= 1 or words in _GREEK
    return words if symbol else words[:1].upper() + words[1:]


def generic_table(key: str, caption: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """Rows of names and values, a column a name."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = (Column(title=spoken(n), align=_alignment([row.get(n) for row in rows])) for n in names)
    return Table(
        key=key,
        caption=caption,
        columns=tuple(columns),
        rows=tuple(tuple(generic(row.get(name)) for name in names) for row in rows),
    )


def as_rows(value: object) -> list[Row] | None:
    """A list of dicts, a dict of dicts or a dict of scalars as rows; None for a single value."""
    if isinstance(value, Mapping):
        entries = {key: _as_row(entry) for key, entry in value.items()}
        nested: list[Row] = [{"": key, **entry} for key, entry in entries.items() if entry is not None]
        if nested and len(nested) == len(entries):
            return nested
        return [{"": spoken(key), "value": entry} for key, entry in value.items()]
    if isinstance(value, list | tuple):
        rows = [row for entry in value if (row := _as_row(entry)) is not None]
        return rows if rows and len(rows) == len(value) else None
    whole = _as_row(value)
    return None if whole is None else as_rows(whole)


def _as_row(value: object) -> Row | None:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type | Estimate):
        return asdict(value)
    return None


def _alignment(values: Sequence[object]) -> Literal["left", "right"]:
    numeric = [
        isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values if v is not None
    ]
    return "right" if numeric and all(numeric) else "left"
