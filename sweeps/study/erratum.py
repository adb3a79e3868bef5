"""One mistake of the authors, and the numbers that show it."""

from dataclasses import dataclass
from typing import Literal

from sweeps.laws import Estimate

Form = Literal["exponent", "count", "loss", "nats", "error", "rate", "bytes", "seconds", "ratio", "slope"]

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class ErratumRow:
    """Published, by the published method on the data given, ours."""

    what: str
    form: Form
    published: float
    repeated: float
    ours: Estimate


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """One mistake."""

    key: str
    title: str
    what_happened: str
    what_it_does: str
    rows: tuple[ErratumRow, ...]


def plain(value: float) -> Estimate:
    """A number that is known, without an interval."""
    return Estimate(value=value, method="exact")
