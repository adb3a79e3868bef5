"""The published study, read where it lies and never committed; a test that needs it skips where it is
absent."""

from pathlib import Path

import polars as pl
import pytest

from sweeps.published import PublishedStudy, read_published
from sweeps.study import Study, StudySettings, make_study
from sweeps.study.data import study_runs
from sweeps.study.parametric import Cell, cells, fit_cells
from sweeps.study.reproduction import Row, reproduction

PAPER = Path(__file__).resolve().parents[4] / "shared/data/paper"


def headline_cells() -> tuple[Cell, ...]:
    """Two deltas at every ratio of D/N: a sixth of the authors' grid, with its hardest cells' neighbours."""
    return cells(ratios=(5000.0,), deltas=(1.0, 1e-3)) + cells(
        sets=("tokenparam",), ratios=(100.0,), deltas=(1.0, 1e-3)
    )


@pytest.fixture(scope="session")
def published() -> PublishedStudy:
    if not PAPER.exists():
        pytest.skip("the published study is not here")
    return read_published(PAPER / "tidy")


@pytest.fixture(scope="session")
def paper_runs(published: PublishedStudy) -> pl.DataFrame:
    return study_runs(published.runs)


@pytest.fixture(scope="session")
def paper_study(published: PublishedStudy, paper_runs: pl.DataFrame) -> Study:
    """The whole study but for the grid of fits, of which it has the cells that are printed in full."""
    fits = fit_cells(paper_runs, headline_cells())
    return make_study(published.runs, published.inference, StudySettings(resamples=200), fits=fits)


@pytest.fixture(scope="session")
def paper_rows(paper_study: Study) -> tuple[Row, ...]:
    return reproduction(paper_study)
