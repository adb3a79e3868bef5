"""Every flag is said once, by severity."""

from dataclasses import replace

import polars as pl

from reports.notices import notices
from reports.view import make_view
from sweeps.laws.types import Analysis, Flag
from tests.reports import synthetic
from tests.reports.test_predicted import FINISHED, OPEN


def told(runs: pl.DataFrame, analysis: Analysis) -> dict[str, tuple[str, ...]]:
    view = make_view(runs, analysis, synthetic.provenance())
    return {notice.code: notice.messages for notice in notices(view)}


def test_flags_of_every_part_appear_errors_first(runs: pl.DataFrame, analysis: Analysis):
    found = notices(make_view(runs, analysis, synthetic.provenance()))
    assert [n.severity for n in found] == sorted(
        (n.severity for n in found), key=["error", "warning", "info"].index
    )
    codes = {
        "inverted-parabola",
        "vertex-outside-grid",
        "few-budgets",
        "quadratic-zone",
        "failed-runs",
        "repeated-data",
    }
    assert {n.code for n in found} == codes


def test_a_flag_that_two_parts_carry_is_said_once(runs: pl.DataFrame, analysis: Analysis):
    assert told(runs, analysis)["few-budgets"] == (
        "Transformer: 3 budgets carry the power law: exponents are rough.",
    )


def test_the_same_trouble_of_two_architectures_is_said_of_both(runs: pl.DataFrame):
    flag = Flag(code="few-points", severity="warning", message="too few")
    plain = synthetic.analysis(synthetic.run_table())
    both = replace(plain, groups=tuple(replace(group, flags=(flag,)) for group in plain.groups))
    assert told(runs, both)["few-points"] == ("Transformer: too few.", "mLSTM: too few.")


def test_runs_that_failed_or_repeat_data(runs: pl.DataFrame, analysis: Analysis):
    said = told(runs, analysis)
    assert said["failed-runs"] == ("1 of 37 runs did not finish with a loss; the fits go without them.",)
    assert said["repeated-data"] == (
        "1 of 37 runs read some tokens more than once, up to 5.50 epochs (Transformer, 14.9 k parameters):"
        " repeated tokens teach less, a larger corpus cures it.",
    )


def test_extrapolation_names_the_targets():
    table = synthetic.run_table()
    said = told(table, synthetic.analysis(table, targets=(3e11, 1e13)))
    assert said["extrapolation"] == (
        "Answers at 1.0e13 FLOPs lie beyond the largest budget that was trained (1.0e12).",
    )


def test_a_hold_out_run_outside_of_its_interval_is_an_error(runs: pl.DataFrame, analysis: Analysis):
    missed = replace(FINISHED, observed=1.6)
    for last, count in ((OPEN, 0), (missed, 1)):
        view = make_view(runs, analysis, synthetic.provenance(), None, (FINISHED, last))
        found = [notice for notice in notices(view) if notice.code == "missed-prediction"]
        assert len(found) == count
        for notice in found:
            (message,) = notice.messages
            assert notice.severity == "error"
            assert message.startswith("Transformer: the hold-out run")
            assert "1.600, not in 1.450 to 1.550" in message


def test_a_clean_sweep_has_no_notices():
    table = synthetic.run_table()
    assert told(table, synthetic.analysis(table)) == {}
