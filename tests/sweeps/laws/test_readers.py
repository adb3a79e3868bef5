"""Foreign tables: columns by option, units checked, one line for what is wrong."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.laws import FitError
from sweeps.laws.readers import parse_mapping, read_runs
from sweeps.run_table import RUN_TABLE_SCHEMA
from tests.sweeps.laws.grids import grid, run_table


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """N in millions, D in billions, their own names."""
    points = grid()
    path = tmp_path / "runs.csv"
    pl.DataFrame(
        {"params": points.N / 1e6, "tok": points.D / 1e9, "ce": points.loss, "C": points.budget}
    ).write_csv(path)
    return path


COLUMNS = {"N": "params", "D": "tok", "loss": "ce", "budget": "C"}


def test_columns_and_units_by_option(theirs: Path) -> None:
    runs = read_runs(theirs, COLUMNS, {"N": "M", "D": "B"}, arch="mlstm", context_length=2048)
    points = grid()
    assert dict(runs.schema) == RUN_TABLE_SCHEMA
    assert runs["N"].to_numpy() == pytest.approx(points.N, rel=1e-12)
    assert runs["D"].to_numpy() == pytest.approx(points.D, rel=1e-12)
    assert runs["arch"].unique().to_list() == ["mlstm"]
    assert runs["context_length"].unique().to_list() == [2048]
    assert runs["status"].unique().to_list() == ["finished"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_our_own_tables_need_no_options(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"runs{suffix}"
    table = run_table(grid(), "mlstm", 4096)
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    runs = read_runs(path)
    assert runs["arch"].unique().to_list() == ["mlstm"]
    assert runs["loss"].to_list() == table["loss"].to_list()


def test_millions_without_a_unit_are_refused(theirs: Path) -> None:
    with pytest.raises(FitError, match=r"column N is .* too small to be a count.* --unit N=M"):
        read_runs(theirs, COLUMNS, {"D": "B"})


def test_rows_are_chosen_by_their_own_columns(theirs: Path) -> None:
    table = pl.read_csv(theirs).with_columns(set=pl.Series(["ours", "other"] * 17 + ["ours"]), keep=True)
    table.write_csv(theirs)
    units = {"N": "M", "D": "B"}
    runs = read_runs(theirs, COLUMNS, units, where={"set": "ours", "keep": "true"})
    assert runs["loss"].to_list() == table.filter(pl.col("set") == "ours")["ce"].to_list()
    with pytest.raises(FitError, match="--where set=mine: no row; set has other, ours"):
        read_runs(theirs, COLUMNS, units, where={"set": "mine"})
    with pytest.raises(FitError, match="--where sort=ours: no such column; it has params"):
        read_runs(theirs, COLUMNS, units, where={"sort": "ours"})


def test_perplexity_is_refused(theirs: Path) -> None:
    table = pl.read_csv(theirs).with_columns(ce=pl.col("ce").exp() * 10)
    table.write_csv(theirs)
    with pytest.raises(FitError, match="not perplexity"):
        read_runs(theirs, COLUMNS, {"N": "M", "D": "B"})


@pytest.mark.parametrize(
    ("columns", "units", "message"),
    [
        ({}, {}, "column N is missing; it has params, tok, ce, C. Say which one it is, as --column N="),
        ({"N": "size"}, {}, "no column size; it has params"),
        ({"M": "params"}, {}, "the run table has no column M"),
        (COLUMNS, {"N": "Q"}, "no such unit"),
        (COLUMNS, {"loss": "M"}, "units are for N"),
        ({"N": "params"}, {"D": "B"}, "has no column D to scale"),
    ],
)
def test_bad_options_name_the_cure(
    theirs: Path, columns: dict[str, str], units: dict[str, str], message: str
) -> None:
    with pytest.raises(FitError, match=message.replace(".", r"\.")):
        read_runs(theirs, columns, units)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("N,D,loss\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR?")
    (tmp_path / "text.csv").write_text("N,D,loss\nbig,1e9,3.0\n")
    for name, message in (
        ("empty.csv", "cannot be read"),
        ("head.csv", "holds no rows"),
        ("bad.parquet", "cannot be read"),
        ("text.csv", "text.csv"),
        ("absent.csv", "no such file"),
        ("runs.xlsx", ".csv or .parquet"),
    ):
        with pytest.raises(FitError, match=message) as caught:
            read_runs(tmp_path / name)
        assert "\n" not in str(caught.value)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z_]+", fullmatch=True), st.from_regex(r"[^=\s]+", fullmatch=True))
)
def test_mappings_are_parsed(pairs: dict[str, str]) -> None:
    assert parse_mapping([f"{name}={value}" for name, value in pairs.items()], "column") == pairs


@pytest.mark.parametrize("text", ["N", "=params", "N=", ""])
def test_a_mapping_without_two_sides_is_an_error(text: str) -> None:
    with pytest.raises(FitError, match="NAME=VALUE"):
        parse_mapping([text], "column")
