"""Numbers as people read them: 12.3 k parameters, 4.1 M tokens, 1.0e12 FLOPs, 0.034 (0.021 to 0.047).

Below zero with a true minus sign; the exponent of `e-05` is notation and keeps its hyphen.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

from sweeps.laws.types import Estimate

NOT_KNOWN = "n/a"
MINUS = "\N{MINUS SIGN}"
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def known(value: float | None) -> TypeGuard[float]:
    """True for a finite number."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """Parameters or tokens at three significant digits: 12.3 k, 4.10 M, 70.6 B."""
    if not known(value):
        return NOT_KNOWN
    if abs(value) >= 1e15:
        return flops(value)
    return " ".join(filter(None, _scaled(value, _SCALES)))


def rate(value: float | None, unit: str) -> str:
    """Of a unit, by SI prefixes, at three significant digits: 2.80 TB/s, 1.37 PFLOP/s."""
    if not known(value):
        return NOT_KNOWN
    number, prefix = _scaled(value, _PREFIXES)
    return f"{number} {prefix}{unit}"


def _scaled(value: float, scales: Sequence[tuple[float, str]]) -> tuple[str, str]:
    """Three digits and the letter of their scale, or none."""
    for scale, letter in scales:
        # 999,999 rounds to 1.00 M and not to 1000 k.
        if abs(value) >= 0.9995 * scale:
            return _three_digits(value / scale), letter
    return _true_minus(f"{value:.3g}"), ""


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return _true_minus(f"{value:.{decimals}f}")


def _true_minus(text: str) -> str:
    return MINUS + text[1:] if text.startswith("-") else text


def flops(value: float | None) -> str:
    """Compute at up to three significant digits: 1.0e12, 3.16e11."""
    if not known(value):
        return NOT_KNOWN
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa[:-1] if mantissa.endswith("0") else mantissa
    return _true_minus(f"{mantissa}e{int(exponent)}")


def loss(value: float | None) -> str:
    """Loss with three decimals: its differences start to matter there."""
    return fixed(value, 3)


def ratio(value: float | None) -> str:
    """A factor at three significant digits: 1.31, 20.0, 3,800; from a million on as 1.0e6."""
    if not known(value):
        return NOT_KNOWN
    if abs(value) < 1000:
        return _three_digits(value) if abs(value) >= 0.1 else _true_minus(f"{value:.3g}")
    return _true_minus(f"{float(f'{value:.2g}'):,.0f}") if abs(value) < 999_500 else flops(value)


def times(value: float | None) -> str:
    """A factor in a sentence: 1.31, 10, 3,800."""
    text = ratio(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def fixed(value: float | None, decimals: int) -> str:
    """Fixed decimals, with no sign on a zero."""
    if not known(value):
        return NOT_KNOWN
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else _true_minus(text)


def signed(value: float | None, decimals: int) -> str:
    """A difference: fixed decimals, and a plus where it is above zero as written."""
    text = fixed(value, decimals)
    return f"+{text}" if known(value) and float(f"{value:.{decimals}f}") > 0 else text


def scientific(value: float | None) -> str:
    """A small quantity by its order: 4.9e-08."""
    return _true_minus(f"{value:.1e}") if known(value) else NOT_KNOWN


def exact(value: float | None, digits: int = 8) -> str:
    """A fitted coefficient: enough digits to use it elsewhere without moving the prediction."""
    return _true_minus(f"{value:#.{digits}g}").replace("e+", "e") if known(value) else NOT_KNOWN


def plain(value: object) -> str:
    """Any scalar of a diagnostics table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _true_minus(f"{value:,}") if abs(value) < 1e15 else flops(float(value))
    if isinstance(value, float):
        if math.isnan(value):
            return NOT_KNOWN
        if value.is_integer() and abs(value) < 1e6:
            return _true_minus(f"{value:,.0f}")
        return _true_minus(f"{value:.5g}").replace("e+", "e")
    return "" if value is None else str(value)


def duration(seconds: float | None) -> str:
    """Wall time: 48 s, 9 min 12 s, 3 h 05 min."""
    if not known(seconds):
        return NOT_KNOWN
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 31.2 MB."""
    if not known(n_bytes):
        return NOT_KNOWN
    return f"{count(n_bytes).replace('B', 'G')}B" if n_bytes >= 1e3 else f"{n_bytes:.0f} B"


def has_interval(estimate: Estimate) -> bool:
    """True where both ends of the interval are known."""
    return math.isfinite(estimate.low) and math.isfinite(estimate.high)


def excludes(estimate: Estimate, value: float) -> bool:
    """True where the interval is known and does not hold `value`; a nan end is no interval."""
    return estimate.low > value or estimate.high < value


def span(estimate: Estimate, form: Callable[[float | None], str] = count) -> str:
    """The interval alone: 38.1 k to 52.0 k. An end at infinity reads `unbounded`."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval"
    low, high = (form(end) if math.isfinite(end) else "unbounded" for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def level(estimate: Estimate) -> str:
    """The interval's level: 95%."""
    return f"{100 * estimate.level:.3g}%"
