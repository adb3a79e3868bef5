"""The sentences of a comparison of two sweeps."""

import math

from reports.comparing import Sides, sentence
from reports.numbers import MINUS
from sweeps.comparing import GroupDifference, Losses, SweepComparison
from sweeps.laws.types import Estimate


def said(low: float, high: float, *, same_data: bool = True) -> str:
    losses = Losses(
        budget=2e11,
        difference=Estimate(value=-0.164, low=low, high=high),
        compute_ratio=Estimate(value=1.5),
        method="isoflop parabolas",
    )
    group = GroupDifference(
        arch="transformer", context_length=128, runs=(15, 12), losses=(losses,), differences=(), test=None
    )
    comparison = SweepComparison(names=("old", "new"), groups=(group,), level=0.95)
    return sentence(comparison, group, Sides(made="", unit="nats per byte", same_data=same_data))


def test_a_difference_comes_with_its_interval_or_without_one() -> None:
    where = "The Transformer at context 128, 2.0e11 FLOPs"
    lead = f"{where}: the best loss of new is 0.164 nats per byte below that of old"
    wide = f"{lead} (95% interval of the difference \N{MINUS SIGN}0.300 to 0.100), which decides nothing."
    assert said(-0.3, 0.1) == wide
    assert said(math.nan, math.nan) == f"{lead} (no interval), which decides nothing."


def test_a_difference_of_data_is_worth_no_compute() -> None:
    wide, apart = said(-0.3, 0.1), said(-0.3, -0.1)
    assert apart.endswith(f"{MINUS}0.100): old needs 1.5 times the compute to reach new.")
    other = said(-0.3, -0.1, same_data=False)
    assert other.endswith(f"{MINUS}0.100), which their different data alone may make.")
    assert said(-0.3, 0.1, same_data=False) == wide
