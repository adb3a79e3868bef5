"""How the study's kinds of numbers are written."""

from reports import numbers
from reports.cells import Form


def digits(count: int) -> Form:
    """A form of so many significant digits."""
    return lambda value: numbers.exact(value, count)


def places(count: int) -> Form:
    """A form of so many decimals."""
    return lambda value: numbers.fixed(value, count)


def percent(value: float | None) -> str:
    """A share as percent."""
    return f"{numbers.fixed(100 * value, 1)} %" if numbers.known(value) else numbers.NOT_KNOWN


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds."""
    return f"{numbers.exact(1e3 * value, 3)} ms" if numbers.known(value) else numbers.NOT_KNOWN


def tera(value: float | None) -> str:
    """FLOP/s or bytes/s in units of 1e12."""
    return f"{numbers.exact(value / 1e12, 4)} T/s" if numbers.known(value) else numbers.NOT_KNOWN


_FORMS: dict[str, Form] = {
    "exponent": places(4),
    "count": numbers.count,
    "loss": places(4),
    "nats": places(4),
    "error": digits(4),
    "rate": tera,
    "bytes": numbers.size,
    "seconds": milliseconds,
    "ratio": places(3),
    "slope": digits(3),
    "log": places(4),
    "time": places(3),
}


def form_of(name: str) -> Form:
    """How a kind of number is written."""
    return _FORMS[name]
