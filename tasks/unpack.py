"""An archive of `pack` becomes a state folder again: whole, or not at all."""

import contextlib
import json
import lzma
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import IO, cast

from tasks.errors import UserError
from tasks.pack import MANIFEST, RECORDS, Manifest
from tasks.parts import Joined, parts_of
from tasks.state import STATE_VERSION, State
from xlstm.data.corpus import META

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's database that name files."""


def unpack(state: State, archive: Path, *, replace: bool = False) -> Manifest:
    """Put the runs of an archive into a state folder that has none; it may have corpora.

    With `replace`, what is there is moved aside, into `replaced-000` and so on. UserError where the archive
    is not whole, or there are runs already.
    """
    _refuse(state, replace)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=state.home) as scratch:
        fresh = Path(scratch)
        _extract(archive, fresh)
        manifest = _manifest(archive, fresh)
        _readdress(fresh / "mlflow.db", manifest.home, str(state.home))
        new_corpora = _new_corpora(state, fresh, manifest)
        if replace:
            _move_aside(state)
        for name in RECORDS:
            if (fresh / name).exists():
                shutil.rmtree(state.home / name, ignore_errors=True)  # empty: see _refuse
                (fresh / name).rename(state.home / name)
        for name in new_corpora:
            (fresh / "data" / name).rename(state.data / name)
        (fresh / "mlflow.db").rename(state.tracking_db)  # last: from now on there are runs
    return manifest


def _refuse(state: State, replace: bool) -> None:
    if not state.is_tracked_here:
        raise UserError("the runs are tracked in PostgreSQL, which an archive cannot be put into")
    there = next((path for path in _there(state) if path.is_file() or any(path.iterdir())), None)
    if there is not None and not replace:
        raise UserError(
            f"{there}: there are runs here already: set ISOFLOP_HOME to another folder, or say --replace"
        )


def _there(state: State) -> list[Path]:
    paths = [state.tracking_db, *(state.home / name for name in RECORDS)]
    return [path for path in paths if path.exists()]


def _move_aside(state: State) -> None:
    number = len(list(state.home.glob("replaced-*")))
    aside = state.home / f"replaced-{number:03d}"
    aside.mkdir()
    journals = [state.home / f"mlflow.db-{kind}" for kind in ("wal", "shm")]
    for path in (*_there(state), *(journal for journal in journals if journal.exists())):
        path.rename(aside / path.name)


def _extract(archive: Path, into: Path) -> None:
    files = [archive] if archive.is_file() else parts_of(archive)
    if not files:
        raise UserError(f"{archive}: no such archive (nor {archive.name}.000)")
    try:
        with (
            Joined(files) as joined,
            lzma.open(cast(IO[bytes], joined), "rb") as content,
            tarfile.open(fileobj=content, mode="r|") as tar,
        ):
            tar.extractall(into, filter="data")
    except (lzma.LZMAError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{files[-1]}: the archive is damaged or not whole ({error}); copy it again"
        ) from error


def _manifest(archive: Path, fresh: Path) -> Manifest:
    path = fresh / MANIFEST
    if not path.exists() or not (fresh / "mlflow.db").exists():
        raise UserError(f"{archive}: is not an archive of isoflop pack, or not the whole of one")
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields["state_version"] > STATE_VERSION:
        raise UserError(
            f"{archive}: made by a newer Isoflop (state version {fields['state_version']}, this one knows"
            f" {STATE_VERSION}): upgrade Isoflop"
        )
    lists = {name: tuple(fields[name]) for name in ("corpora", "left_behind")}
    return Manifest(**{**fields, **lists})


def _readdress(database: Path, old_home: str, new_home: str) -> None:
    """Have MLflow find the artifacts where they are now."""
    old, new = Path(old_home).as_uri() + "/", Path(new_home).as_uri() + "/"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        for table, column in ADDRESSES:
            if table in tables:
                begins = f"substr({column}, 1, {len(old)}) = ?"
                moved = f"? || substr({column}, {len(old) + 1})"
                connection.execute(f"UPDATE {table} SET {column} = {moved} WHERE {begins}", (new, old))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _new_corpora(state: State, fresh: Path, manifest: Manifest) -> list[str]:
    """Corpora that are not here yet; UserError where one of the same name is here and is another."""
    new = []
    for name in manifest.corpora:
        here, brought = state.data / name / META, fresh / "data" / name / META
        if not here.exists():
            new.append(name)
        elif _hash(here) != _hash(brought):
            raise UserError(
                f"{here.parent}: is another corpus than the archive's of the same name; move it away"
            )
    return new


def _hash(meta: Path) -> str:
    return str(json.loads(meta.read_text(encoding="utf-8"))["content_hash"])
