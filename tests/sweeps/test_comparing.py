"""Two sweeps: a change that is there is found, one that is not there is not, and by the right sign."""

import numpy as np
import polars as pl
import pytest

from sweeps.comparing import compare_sweeps, same_law
from sweeps.laws import FitError, LawSettings
from sweeps.laws.inputs import points_from_arrays
from tests.reports import synthetic

SETTINGS = LawSettings(resamples=60, target_budgets=(1e13,))
LAW = synthetic.SURFACES["transformer"]


def sweep(seed: int, *, factor: float = 1.0, noise: float = 0.003) -> pl.DataFrame:
    """Runs of one architecture on the same surface, its losses times a factor."""
    table = synthetic.run_table().filter(pl.col("arch") == "transformer")
    rng = np.random.default_rng(seed)
    clean = synthetic.surface("transformer", table["N"].to_numpy(), table["D"].to_numpy())
    return table.with_columns(
        loss=pl.Series(factor * clean * np.exp(noise * rng.standard_normal(len(clean))))
    )


@pytest.fixture(scope="module")
def improved():
    return compare_sweeps(sweep(1), sweep(2, factor=0.97), SETTINGS, names=("old", "new"))


def test_a_lower_loss_is_found_at_every_budget(improved):
    (group,) = improved.groups
    assert (group.arch, group.context_length, group.runs) == ("transformer", 128, (18, 18))
    assert [found.budget for found in group.losses] == [*synthetic.BUDGETS, 1e13]
    for found in group.losses[:3]:
        expected = -0.03 * synthetic.optimum("transformer", found.budget)[2]
        assert found.difference.value == pytest.approx(expected, abs=0.012)
        assert found.difference.low < expected < found.difference.high
        assert found.significant
        assert found.compute_ratio.value > 1


def test_what_did_not_change_is_not_found(improved):
    (group,) = improved.groups
    exponents = [found for found in group.differences if found.quantity in ("a", "b")]
    assert len(exponents) == 3
    assert not any(found.significant for found in exponents)


def test_one_law_is_rejected_where_there_are_two(improved):
    assert improved.groups[0].test.p_value < 1e-6
    assert improved.groups[0].test.freedom == (5, 26)


def test_the_sign_turns_with_the_order(improved):
    turned = compare_sweeps(sweep(2, factor=0.97), sweep(1), SETTINGS, names=("new", "old"))
    for one, other in zip(improved.groups[0].losses, turned.groups[0].losses, strict=True):
        assert one.difference.value == pytest.approx(-other.difference.value, abs=1e-9)
    assert turned.groups[0].losses[1].compute_ratio.value < 1


def test_same_law_keeps_its_level():
    """Of 40 pairs of sweeps on one surface few are called different, and p is spread evenly."""
    rng = np.random.default_rng(5)
    table = sweep(0)
    N, D = table["N"].to_numpy(), table["D"].to_numpy()
    clean = synthetic.surface("transformer", N, D)

    def points():
        return points_from_arrays(N, D, clean * np.exp(0.003 * rng.standard_normal(len(N))))

    p = np.array([same_law(points(), points(), SETTINGS).p_value for _ in range(40)])
    assert np.mean(p < 0.05) <= 0.15
    assert 0.3 < np.median(p) < 0.7


def test_sweeps_that_share_nothing_are_refused():
    other = sweep(1).with_columns(arch=pl.lit("mlstm"))
    with pytest.raises(
        FitError, match="share no architecture and context length: they hold transformer at 128"
    ):
        compare_sweeps(sweep(1), other, SETTINGS, names=("a", "b"))


def test_too_few_runs_give_flags_and_no_test():
    few = sweep(1).head(4)
    (group,) = compare_sweeps(few, sweep(2), SETTINGS, names=("a", "b")).groups
    assert group.test is None
    assert any("more than 5 runs" in flag.message for flag in group.flags)


def test_groups_of_one_sweep_alone_are_named():
    both = pl.concat([sweep(1), sweep(1).with_columns(arch=pl.lit("mlstm"))])
    found = compare_sweeps(both, sweep(2), LawSettings(resamples=10), names=("a", "b"))
    assert found.flags[0].message.endswith("mlstm at context 128")
