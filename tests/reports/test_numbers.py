"""Numbers as people read them."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import numbers
from sweeps.laws.types import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12_345, "12.3 k"),
        (4_096_000, "4.10 M"),
        (999_999, "1.00 M"),
        (70.55e9, "70.5 B"),
        (1.4e12, "1.40 T"),
        (321, "321"),
        (math.nan, "n/a"),
        (None, "n/a"),
    ],
)
def test_count(value: float | None, text: str):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e12, "1.0e12"), (3.16e11, "3.16e11"), (9.996e18, "1.0e19"), (5.76e23, "5.76e23"), (math.inf, "n/a")],
)
def test_flops(value: float, text: str):
    assert numbers.flops(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.8e12, "B/s", "2.80 TB/s"),
        (1.37e15, "FLOP/s", "1.37 PFLOP/s"),
        (999.7e9, "FLOP/s", "1.00 TFLOP/s"),
        (52.5e9, "FLOP/s", "52.5 GFLOP/s"),
        (12, "1/s", "12 1/s"),
        (None, "B/s", "n/a"),
    ],
)
def test_rate(value: float | None, unit: str, text: str):
    assert numbers.rate(value, unit) == text


@pytest.mark.parametrize(("seconds", "text"), [(48.2, "48 s"), (552, "9 min 12 s"), (11_100, "3 h 05 min")])
def test_duration(seconds: float, text: str):
    assert numbers.duration(seconds) == text


def test_zero_has_no_sign_and_minus_is_a_minus():
    assert numbers.fixed(-0.0001, 3) == "0.000"
    assert numbers.fixed(-0.25, 2) == "−0.25"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "+0.250"), (-0.25, "−0.250"), (0.0004, "0.000"), (-0.0004, "0.000"), (math.nan, "n/a")],
)
def test_a_difference_has_its_sign_unless_it_reads_as_zero(value: float, text: str):
    assert numbers.signed(value, 3) == text


@pytest.mark.parametrize(("value", "text"), [(10.0, "10"), (1.5, "1.5"), (3800.4, "3,800"), (2e6, "2.0e6")])
def test_times(value: float, text: str):
    assert numbers.times(value) == text


@given(st.floats(min_value=1.0, max_value=1e15))
def test_count_keeps_three_digits(value: float):
    number, *letter = numbers.count(value).split(" ")
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[letter[0]] if letter else 1.0
    shown = float(number) * scale
    assert shown == pytest.approx(value, rel=5.1e-3)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_exact_keeps_eight_digits(value: float):
    assert float(numbers.exact(value).replace(numbers.MINUS, "-")) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize(
    "form",
    [
        numbers.count,
        numbers.flops,
        numbers.loss,
        numbers.ratio,
        numbers.times,
        numbers.scientific,
        numbers.exact,
        numbers.plain,
        lambda value: numbers.rate(value, "B/s"),
    ],
)
@given(st.floats(min_value=1e-3, max_value=1e20) | st.integers(1, 10**20).map(float))
def test_below_zero_is_the_same_after_a_true_minus(form: Callable[[float | None], str], value: float):
    assert form(-value) == numbers.MINUS + form(value) or float(form(value)) == 0


def test_negative_whole_numbers():
    assert (numbers.plain(-1234), numbers.plain(-1234.0)) == ("−1,234", "−1,234")
    assert numbers.exact(-1.5e-05, 3) == "−1.50e-05"


def test_intervals():
    known = Estimate(value=2.0, low=1.0, high=3.0)
    assert numbers.excludes(known, 0.0)
    assert not numbers.excludes(known, 2.5)
    assert not numbers.excludes(Estimate(value=2.0), 0.0)
    assert numbers.span(Estimate(value=2.0)) == "no interval"
