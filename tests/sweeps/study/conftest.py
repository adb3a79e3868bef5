"""The published study and its analyses."""

import polars as pl
import pytest

from sweeps.published import PublishedStudy
from sweeps.study import Study
from sweeps.study.data import study_runs
from sweeps.study.reproduction import Row, reproduction
from tests.sweeps.study.paper import analyse_paper, read_paper


@pytest.fixture(scope="session")
def published() -> PublishedStudy:
    return read_paper()


@pytest.fixture(scope="session")
def paper_runs(published: PublishedStudy) -> pl.DataFrame:
    return study_runs(published.runs)


@pytest.fixture(scope="session")
def paper_study() -> Study:
    return analyse_paper()


@pytest.fixture(scope="session")
def paper_rows(paper_study: Study) -> tuple[Row, ...]:
    return reproduction(paper_study)
