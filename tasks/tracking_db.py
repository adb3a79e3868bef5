"""MLflow's SQLite file: made once, whole, before anything parallel; checked and never made again."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from tasks.environment import environment
from tasks.errors import UserError
from tasks.state import TRACKING_VARIABLE, State
from xlstm.training.failures import redact


def ensure_tracking_db(state: State) -> None:
    """Make MLflow's database if there is none; UserError where one is there that this MLflow cannot use.

    Parallel first users race in the migrations and leave a file that nothing repairs. So one process migrates
    a file beside it, which takes its name when complete. WAL lets eight writers log 2.5 times as fast.
    """
    with FileLock(state.lock("mlflow-db")):
        if not state.is_tracked_here:
            _ensure_shared(state)
            return
        if state.tracking_db.exists():
            fault = tracking_db_fault(state)
            if fault is not None:
                raise UserError(fault)
            return
        _create(state)


def _create(state: State) -> None:
    fresh = state.home / "mlflow.db.new"
    for leftover in state.home.glob("mlflow.db.new*"):
        leftover.unlink()
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{fresh}"]
    done = subprocess.run(command, env=environment(state), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{state.tracking_db}: MLflow could not make it: {_last_line(done.stderr)}")
    with contextlib.closing(sqlite3.connect(fresh)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    os.replace(fresh, state.tracking_db)


def _ensure_shared(state: State) -> None:
    """Have MLflow make its tables in the PostgreSQL that the environment names, where there are none."""
    if (fault := shared_db_fault(state)) is None:
        return
    if fault != _EMPTY:
        raise UserError(fault)
    command = [
        sys.executable,
        "-c",
        "from mlflow.tracking import MlflowClient as C; C().search_experiments()",
    ]
    done = subprocess.run(command, env=environment(state), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = redact(_last_line(done.stderr))
        raise UserError(f"{TRACKING_VARIABLE}: MLflow could not make its tables: {reason}")


_EMPTY = f"{TRACKING_VARIABLE}: the database has no tables of MLflow yet; the next sweep makes them"


def shared_db_fault(state: State) -> str | None:
    """What keeps MLflow from the PostgreSQL that the environment names, in one line; None if nothing."""
    import sqlalchemy

    if not state.tracking_uri.startswith("postgresql"):
        return f"{TRACKING_VARIABLE} = {redact(state.tracking_uri)}: must begin with postgresql://"
    try:
        engine = sqlalchemy.create_engine(state.tracking_uri, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("alembic_version"):
                return _EMPTY
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    except ModuleNotFoundError as error:
        return f"{TRACKING_VARIABLE}: {error.name} is not installed: pip install 'isoflop[postgres]'"
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = redact(" ".join(str(error).split()))[:200]
        return f"{TRACKING_VARIABLE}: the database cannot be used: {reason}"
    if found != _head(_migrations()):
        return f"{TRACKING_VARIABLE}: has another MLflow's schema ({found}): see `mlflow db upgrade`"
    return None


def tracking_db_fault(state: State) -> str | None:
    """What is wrong with the database, in one line with its cure; None where it fits this MLflow."""
    path = state.tracking_db
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        return f"{path}: is no MLflow database ({error}): restore it from a copy, or move it away"
    known = _migrations()
    if found == _head(known):
        return None
    if found in known:
        return (
            f"{path}: has the schema of an older MLflow ({found}):"
            f" copy it, then run `mlflow db upgrade {state.tracking_uri}`"
        )
    return f"{path}: has the schema of a newer MLflow ({found}): install that MLflow (pip install -U mlflow)"


def integrity_fault(state: State) -> str | None:
    """SQLite's own check of the whole file, slow on a large one."""
    with contextlib.closing(sqlite3.connect(f"file:{state.tracking_db}?mode=ro", uri=True)) as database:
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    return None if verdict == "ok" else f"{state.tracking_db}: {verdict}: restore it from a copy"


def _migrations() -> dict[str, str | None]:
    """Revisions that the installed MLflow knows, each with the one before it; MLflow is not imported."""
    found = find_spec("mlflow")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    revisions: dict[str, str | None] = {}
    for script in folder.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        revision = re.search(r"^revision\s*=\s*[\"'](\w+)", text, re.MULTILINE)
        before = re.search(r"^down_revision\s*=\s*[\"'](\w+)", text, re.MULTILINE)
        if revision:
            revisions[revision[1]] = before[1] if before else None
    return revisions


def _head(revisions: dict[str, str | None]) -> str:
    """The one revision that no other follows."""
    (head,) = revisions.keys() - set(revisions.values())
    return head


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
