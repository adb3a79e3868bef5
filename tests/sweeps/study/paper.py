"""The published study, read where it lies and analysed once a process; skips where it is absent."""

from functools import cache
from pathlib import Path

import pytest

from sweeps.published import PublishedStudy, read_published
from sweeps.study import Study, StudySettings, make_study
from sweeps.study.data import study_runs
from sweeps.study.parametric import Cell, cells, fit_cells

PAPER = Path(__file__).resolve().parents[4] / "shared/data/paper"


def headline_cells() -> tuple[Cell, ...]:
    """The authors' grid at two deltas and all ratios of D/N, and the range with the fewest runs."""
    return cells(ratios=(5000.0,), deltas=(1.0, 1e-3)) + cells(
        sets=("tokenparam",), ratios=(100.0,), deltas=(1.0, 1e-3)
    )


@cache
def read_paper() -> PublishedStudy:
    if not PAPER.exists():
        pytest.skip("the published study is not here")
    return read_published(PAPER / "tidy")


@cache
def analyse_paper() -> Study:
    """The whole study but for the grid of fits, of which it has the cells that are printed in full."""
    published = read_paper()
    fits = fit_cells(study_runs(published.runs), headline_cells())
    return make_study(published.runs, published.inference, StudySettings(resamples=200), fits=fits)
