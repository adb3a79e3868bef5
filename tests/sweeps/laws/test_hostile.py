"""Input that others turn into numbers: here it is an error that names the culprit, or a flag."""

import warnings

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.laws import ESTIMATORS, LAWS, FitError, LawFit, LawSettings, fit, fit_arrays, prepare
from tests.sweeps.laws.surfaces import TRUTH, grid, response


def runs(**changes: object) -> pl.DataFrame:
    inputs = grid()
    y = response("chinchilla", TRUTH["chinchilla"], inputs, ("N", "D"))
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(y))
    return pl.DataFrame({"N": inputs["N"], "D": inputs["D"], "loss": y * np.exp(noise)} | changes)


def with_cell(column: str, value: float, row: int = 7) -> pl.DataFrame:
    cells = runs()[column].to_numpy().copy()
    cells[row] = value
    return runs(**{column: cells})


def codes(fitted: LawFit) -> set[str]:
    return {flag.code for flag in fitted.flags}


def attempt(table: pl.DataFrame | dict[str, np.ndarray], settings: LawSettings) -> LawFit | FitError:
    """Either is an answer to data that no estimator can rescue; a bare number is not."""
    try:
        return fit(table, settings)
    except FitError as error:
        return error


QUICK = LawSettings(resamples=60)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("column", ["N", "D", "loss"])
def test_impossible_numbers_name_column_and_row(column: str, value: float) -> None:
    with pytest.raises(FitError, match=rf"{column} = .* in row 7; mend or drop 1 row"):
        fit(with_cell(column, value), QUICK)


def test_dropping_impossible_rows_is_asked_for_and_flagged() -> None:
    points = prepare(with_cell("loss", float("nan")), drop_invalid=True)
    assert len(points) == 55
    assert [flag.code for flag in points.flags] == ["invalid-rows"]
    assert "row 7" in points.flags[0].message


def test_a_null_is_not_a_number() -> None:
    losses = [None, *runs()["loss"].to_list()[1:]]
    with pytest.raises(FitError, match="loss = nan in row 0"):
        prepare(runs(loss=losses))


def test_text_in_a_column() -> None:
    with pytest.raises(FitError, match=r"column 'loss' holds String, not numbers .*'3\.1x'"):
        prepare(runs(loss=["3.1x"] * 56))
    with pytest.raises(FitError, match="D holds text"):
        fit_arrays(LAWS["chinchilla"], {"N": grid()["N"], "D": ["many"] * 56}, np.ones(56))  # type: ignore[dict-item,list-item]


def test_missing_column_lists_what_there_is() -> None:
    with pytest.raises(FitError, match="column 'D' is missing; the table has N, loss"):
        prepare(runs().drop("D"))


def test_an_empty_table() -> None:
    with pytest.raises(FitError, match="no usable run is left"):
        prepare(runs().head(0))


def test_failed_runs_are_left_out_with_a_flag() -> None:
    status = ["failed", *["finished"] * 55]
    points = prepare(with_cell("loss", float("nan"), row=0).with_columns(pl.Series("status", status)))
    assert len(points) == 55
    assert [flag.code for flag in points.flags] == ["unfinished-runs"]


def test_errors_count_rows_of_the_table_given() -> None:
    status = ["failed", *["finished"] * 55]
    table = with_cell("loss", -2.0, row=9).with_columns(pl.Series("status", status))
    with pytest.raises(FitError, match="loss = -2 in row 9"):
        prepare(table)


def test_fits_neither_need_nor_change_writable_arrays() -> None:
    columns = {name: runs()[name].to_numpy().copy() for name in ("N", "D", "loss")}
    for column in columns.values():
        column.setflags(write=False)
    before = {name: column.copy() for name, column in columns.items()}
    fitted = fit(columns, QUICK)
    assert np.isfinite(fitted.params["alpha"].low)
    for name, column in columns.items():
        np.testing.assert_array_equal(column, before[name])
    with pytest.raises(ValueError, match="read-only"):
        prepare(columns).loss[0] = 1.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_constant_loss_is_refused(name: str) -> None:
    with pytest.raises(FitError, match="all 56 responses equal 3: a constant shows no law"):
        fit(runs(loss=np.full(56, 3.0)), LawSettings(estimator=name))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_two_sizes_do_not_show_an_exponent(name: str) -> None:
    table = runs()
    two = table.filter(pl.col("N").is_in(table["N"].unique().sort()[:2].implode()))
    with pytest.raises(FitError, match="chinchilla is not identified"):
        fit(two, LawSettings(estimator=name, resamples=60))


def test_one_size_is_refused_by_name() -> None:
    with pytest.raises(FitError, match=r"N is 1e\+09 in every row"):
        fit(runs(N=np.full(56, 1e9)), QUICK)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_near_equal_sizes_are_refused_or_flagged(name: str) -> None:
    """Five sizes within 1 %: peers return alpha 4.5 and A 1e35 with success."""
    N = 1e9 * (1 + 0.002 * (np.arange(56) % 5))
    y = response("chinchilla", TRUTH["chinchilla"], {"N": N, "D": grid()["D"]}, ("N", "D"))
    y = y * np.exp(0.003 * np.random.default_rng(1).standard_normal(56))
    outcome = attempt(runs(N=N, loss=y), LawSettings(estimator=name, resamples=60))
    if isinstance(outcome, LawFit):
        assert {"narrow-range", "ill-conditioned"} <= codes(outcome)
        assert any(flag.severity == "error" for flag in outcome.flags)
    else:
        assert "not identified" in str(outcome)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_budget_does_not_identify_the_floor(name: str) -> None:
    N = np.geomspace(1e8, 1e10, 20)
    D = 1e20 / (6 * N)
    y = response("chinchilla", TRUTH["chinchilla"], {"N": N, "D": D}, ("N", "D"))
    y = y * np.exp(0.002 * np.random.default_rng(1).standard_normal(20))
    outcome = attempt({"N": N, "D": D, "loss": y}, LawSettings(estimator=name, resamples=60))
    if isinstance(outcome, LawFit):
        one_budget = next(flag for flag in outcome.flags if flag.code == "one-budget")
        assert one_budget.severity == "error"
        assert "E is not identified" in one_budget.message
    else:
        assert "not identified" in str(outcome)


def test_fewer_points_than_parameters() -> None:
    with pytest.raises(FitError, match="chinchilla has 5 parameters and there are 4 points"):
        fit(runs().sample(4, seed=0), QUICK)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_floor_below_zero_becomes_a_vanished_term(name: str) -> None:
    inputs = grid()
    y = 406.4 / inputs["N"] ** 0.34 + 410.7 / inputs["D"] ** 0.28 - 0.15
    fitted = fit(runs(loss=y), LawSettings(estimator=name, resamples=60))
    vanished = next(flag for flag in fitted.flags if flag.code == "vanished-term")
    assert vanished.message.startswith("E has run to 0")
    assert fitted.params["E"].value < 1e-9
    assert "not-converged" not in codes(fitted)


def test_a_loss_that_rises_with_size_is_flagged() -> None:
    inputs = grid()
    fitted = fit(runs(loss=2.0 + 1e-3 * inputs["N"] ** 0.2 + 40 / inputs["D"] ** 0.2), QUICK)
    flag = next(flag for flag in fitted.flags if flag.code == "exponent-out-of-range")
    assert flag.severity == "error"
    assert "alpha = -0.2" in flag.message


def test_repeats_and_checkpoints_are_flagged_and_clustered() -> None:
    table = runs().with_columns(run_key=pl.Series([f"run{i // 8}" for i in range(56)]))
    fitted = fit(table, QUICK)
    assert "dependent-rows" in codes(fitted)
    assert "cluster bootstrap by run, 7 clusters" in fitted.clustered["alpha"].method
    twice = prepare(pl.concat([runs(), runs()]))
    assert "duplicate-rows" in {flag.code for flag in twice.flags}


def test_two_data_sets_in_one_table_are_flagged() -> None:
    """Between two losses at every N and D Huber's sum is flat: any surface between them is its minimum."""
    table = pl.concat([runs(), runs(loss=2 * runs()["loss"].to_numpy())])
    fitted = fit(table, QUICK)
    assert {"contradictory-rows", "flat-objective"} <= codes(fitted)
    message = next(flag.message for flag in fitted.flags if flag.code == "contradictory-rows")
    assert "differ by up to 100%" in message
    seeds = pl.concat([runs(), runs(loss=1.004 * runs()["loss"].to_numpy())])
    assert not {"contradictory-rows", "flat-objective"} & codes(fit(seeds, QUICK))


def test_mixed_architectures_are_flagged() -> None:
    mixed = runs(arch=["transformer"] * 28 + ["mlstm"] * 28)
    assert [flag.code for flag in prepare(mixed).flags] == ["mixed-groups"]


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(FitError, match="law 'chinchila' is unknown; there are chinchilla, tied"):
        fit(runs(), LawSettings(law="chinchila"))
    with pytest.raises(FitError, match="needs C, T; T is missing"):
        fit(runs(), LawSettings(law="context"))
    with pytest.raises(FitError, match="a number or auto"):
        fit(runs(), LawSettings(huber_delta="automatic"))  # type: ignore[arg-type]


def test_partly_known_flops_are_not_mixed_with_6nd() -> None:
    flops = [None, *[1e20] * 55]
    points = prepare(runs(train_flops=flops))
    np.testing.assert_allclose(points.C, 6 * points.N * points.D)
    assert [flag.code for flag in points.flags] == ["train-flops-incomplete"]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.floats(1e-3, 1e3) | st.floats(2.0, 4.0), min_size=12, max_size=12),
    estimator=st.sampled_from(ESTIMATORS),
    law=st.sampled_from(["chinchilla", "tied", "no-E", "gamma", "kaplan"]),
)
def test_nonsense_ends_in_an_error_or_a_flagged_fit(losses: list[float], estimator: str, law: str) -> None:
    """Twelve arbitrary losses hold no law: whatever is returned must carry an objection."""
    inputs = grid()
    rows = np.arange(0, 56, 5)[:12]
    table = {"N": inputs["N"][rows], "D": inputs["D"][rows], "loss": np.array(losses)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = attempt(table, LawSettings(law=law, estimator=estimator, resamples=20))
    if isinstance(outcome, LawFit):
        assert np.isfinite(outcome.objective)
        assert outcome.flags or outcome.diagnostics["r2"] > 0.5
