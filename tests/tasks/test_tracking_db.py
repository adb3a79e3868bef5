"""MLflow's database: made whole, kept, or refused with the cure."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tasks.errors import UserError
from tasks.state import State
from tasks.tracking_db import ensure_tracking_db, integrity_fault, tracking_db_fault


@contextmanager
def database(state: State) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(state.tracking_db)) as connection, connection:
        yield connection


@pytest.mark.slow
def test_a_fresh_database_is_complete_and_in_wal_mode(state: State) -> None:
    (state.home / "mlflow.db.new").write_text("what a killed first start left")
    ensure_tracking_db(state)
    assert tracking_db_fault(state) is None
    assert integrity_fault(state) is None
    with database(state) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not list(state.home.glob("mlflow.db.new*"))


def test_a_database_that_fits_is_left_alone(tracked: State) -> None:
    before = tracked.tracking_db.read_bytes()
    ensure_tracking_db(tracked)
    assert tracked.tracking_db.read_bytes() == before


@pytest.mark.parametrize(
    ("revision", "cure"),
    [
        ("451aebb31d03", "older MLflow .* `mlflow db upgrade sqlite:///"),
        ("fffffffffff0", "newer MLflow .* install"),
    ],
)
def test_another_schema_is_refused_and_kept(tracked: State, revision: str, cure: str) -> None:
    with database(tracked) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(UserError, match=cure):
        ensure_tracking_db(tracked)
    with database(tracked) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)


@pytest.mark.parametrize("content", [b"", b"no database, though its name says so"])
def test_a_file_that_is_no_database_is_refused_and_kept(state: State, content: bytes) -> None:
    state.tracking_db.write_bytes(content)
    with pytest.raises(UserError, match=r"mlflow\.db: is no MLflow database .* restore it from a copy"):
        ensure_tracking_db(state)
    assert state.tracking_db.read_bytes() == content
