"""Fixtures that several folders share."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import copyfile

import pytest
from filelock import FileLock

if not Path("/dev/nvidiactl").exists():  # Triton's interpreter, chosen before any file imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A ledger of this process's own: tests wait for no sweep of the machine, nor for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_LEASES", str(tmp_path_factory.mktemp("leases")))
        yield


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database. Migrating one takes seconds, so the workers of a test run share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template = shared / "mlflow-template.db"
    with FileLock(shared / "mlflow-template.lock"):
        if not template.exists():
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{template}.new"]
            env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
            subprocess.run(command, check=True, capture_output=True, env=env)
            with closing(sqlite3.connect(f"{template}.new")) as database:
                database.execute("PRAGMA journal_mode=WAL")
            Path(f"{template}.new").rename(template)
    return template


@pytest.fixture
def tracking_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """A fresh MLflow store of this test's own."""
    copyfile(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
