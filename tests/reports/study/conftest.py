"""The analyses of the published study."""

import pytest

from sweeps.study import Study
from tests.sweeps.study.paper import analyse_paper


@pytest.fixture(scope="session")
def paper_study() -> Study:
    return analyse_paper()
