"""Which method compares two architectures, and what it says beyond the grid."""

from dataclasses import replace

import pytest

from sweeps.laws import LawSettings
from sweeps.laws.comparison import Side, compare
from sweeps.laws.fitting import fit
from sweeps.laws.inputs import six_nd
from sweeps.laws.isoflop import fit_isoflop
from sweeps.laws.types import Flag
from tests.sweeps.laws.grids import HOFFMANN, grid

SETTINGS = LawSettings(resamples=100, target_budgets=(1e22,))
UNIDENTIFIED = Flag(code="unidentified", severity="error", message="alpha is hardly identified")


def side(arch: str, seed: int, **surface: float) -> Side:
    points = grid({**HOFFMANN, **surface}, noise=0.002, seed=seed)
    return Side(
        arch=arch,
        context_length=512,
        points=points,
        flops=six_nd,
        isoflop=fit_isoflop(points, resamples=100, seed=seed),
        fits=(fit(points, SETTINGS),),
    )


def doubted(one: Side) -> Side:
    """The same runs, under a law that they do not identify."""
    return replace(one, fits=(replace(one.fits[0], flags=(UNIDENTIFIED,)),))


def test_an_unidentified_law_leaves_the_extrapolation_to_the_power_laws() -> None:
    better, worse = side("mlstm", 1), side("transformer", 2, B=480.0)
    by_law = {c.budget: c for c in compare(better, worse, SETTINGS)}
    by_line = {c.budget: c for c in compare(better, doubted(worse), SETTINGS)}
    assert by_law[1e22].method == "chinchilla law"
    assert by_line[1e22].method == "isoflop power laws"
    assert {c.method for budget, c in by_line.items() if budget < 1e22} == {"isoflop parabolas"}
    assert by_line[1e19] == by_law[1e19]
    assert by_line[1e22].better == "mlstm"
    line, law = (found[1e22].loss_difference for found in (by_line, by_law))
    assert line.low < law.value < line.high
    assert by_line[1e22].compute_ratio.value == pytest.approx(by_law[1e22].compute_ratio.value, rel=0.3)


def test_without_any_law_the_target_is_left_out() -> None:
    one, two = doubted(side("mlstm", 1)), replace(side("transformer", 2), isoflop=None, fits=())
    assert compare(one, two, SETTINGS) == []
