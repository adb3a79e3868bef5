"""Every headline number of the paper that the data determine, within the tolerance that PAPER.md gives it."""

from collections import Counter

import polars as pl
import pytest

from sweeps.published import PublishedStudy
from sweeps.study import Study, StudySettings, make_study
from sweeps.study.reproduction import Row, reproduction


def standing(rows: tuple[Row, ...], group: str) -> Counter[str]:
    return Counter(row.standing for row in rows if row.group == group)


def test_no_number_differs(paper_rows: tuple[Row, ...]):
    assert [row for row in paper_rows if row.standing == "differs"] == []


@pytest.mark.parametrize(
    ("group", "reproduced", "clean", "absent"),
    [
        ("Runs", 15, 0, 8),
        ("IsoFLOP optima", 54, 6, 24),
        ("Power laws", 48, 15, 18),
        ("Optimal table", 22, 22, 0),
        ("Context length", 0, 0, 12),
        ("Goodness of fit", 4, 0, 0),
        ("Over-training", 70, 0, 0),
        ("Pareto frontier", 10, 0, 0),
        ("Inference fits", 121, 0, 0),
        ("Measured times", 6, 0, 0),
    ],
)
def test_how_many_numbers_of_each_part_come_out(
    paper_rows: tuple[Row, ...], group: str, reproduced: int, clean: int, absent: int
):
    """`clean` are those that the 32 copies moved: met without them, and the difference told."""
    found = standing(paper_rows, group)
    assert (found["reproduced"], found["clean"], found["absent"]) == (reproduced, clean, absent)


def test_the_transformer_needs_no_clean_data(paper_rows: tuple[Row, ...]):
    moved = [row for row in paper_rows if row.standing == "clean"]
    assert all("xLSTM" in row.what for row in moved)


def test_a_number_that_moves_is_told_from_one_that_does_not():
    row = Row(group="g", what="w", printed=2.0, got=2.0 + 3e-6, tolerance=1e-6)
    assert row.standing == "differs"
    assert row.difference == pytest.approx(1.5e-6)
    assert Row(group="g", what="w", printed=2.0, got=2.0 + 1e-6, tolerance=1e-6).standing == "reproduced"
    assert Row(group="g", what="w", printed=2.0, got=2.1, tolerance=1e-6, clean=2.1).standing == "clean"
    assert Row(group="g", what="w", printed=2.0, got=float("nan"), tolerance=1.0).standing == "absent"


def test_a_run_more_or_less_is_noticed(published: PublishedStudy, paper_study: Study):
    """The numbers hang on the data: without one run of a grid its optimum is not the printed one."""
    first = (
        (pl.col("arch") == "transformer") & (pl.col("context_length") == 2048) & (pl.col("budget") == 6e18)
    )
    lost = published.runs.filter(first)["run_key"][0]
    fewer = make_study(
        published.runs.filter(pl.col("run_key") != lost),
        published.inference.head(0),
        StudySettings(resamples=20),
        fits=paper_study.fits,
    )
    found = {row.what: row.standing for row in reproduction(fewer)}
    assert found["N*, Transformer 2048 at 6e18"] == "differs"
    assert found["N*, Transformer 2048 at 1e19"] == "reproduced"
