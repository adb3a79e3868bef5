"""The sentences of a comparison of two sweeps."""

import math

from reports.comparing import sentence
from sweeps.comparing import GroupDifference, Losses, SweepComparison
from sweeps.laws.types import Estimate


def said(low: float, high: float) -> str:
    losses = Losses(
        budget=2e11,
        difference=Estimate(value=-0.164, low=low, high=high),
        compute_ratio=Estimate(value=1.5),
        method="isoflop parabolas",
    )
    group = GroupDifference(
        arch="transformer", context_length=128, runs=(15, 12), losses=(losses,), differences=(), test=None
    )
    return sentence(
        SweepComparison(names=("old", "new"), groups=(group,), level=0.95), group, "nats per byte"
    )


def test_a_difference_comes_with_its_interval_or_without_one() -> None:
    where = "The Transformer at context 128, 2.0e11 FLOPs"
    lead = f"{where}: the best loss of new is 0.164 nats per byte below that of old"
    wide = f"{lead} (95% interval of the difference \N{MINUS SIGN}0.300 to 0.100), which decides nothing."
    assert said(-0.3, 0.1) == wide
    assert said(math.nan, math.nan) == f"{lead} (no interval), which decides nothing."
