"""A state folder of a test's own."""

from pathlib import Path
from shutil import copyfile

import pytest

from tasks.state import State, open_state


@pytest.fixture
def state(tmp_path: Path) -> State:
    """Fresh, without databases."""
    return open_state(tmp_path / "state")


@pytest.fixture
def tracked(state: State, mlflow_template: Path) -> State:
    """With MLflow's database."""
    copyfile(mlflow_template, state.tracking_db)
    return state
