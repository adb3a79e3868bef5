"""A state folder as an archive, to go on with its sweeps on another machine: `unpack` is the way back.

What says that runs are done goes along (MLflow's database, records, reports), and the checkpoints of those
that are not. Weights of finished runs, Prefect's history, logs of services and locks stay behind.
"""

import contextlib
import json
import lzma
import sqlite3
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

from tasks.errors import UserError
from tasks.locks import sweeps_under_way
from tasks.parts import Parts
from tasks.state import STATE_VERSION, State

MANIFEST = "manifest.json"
"""Last in the archive: one that has it is whole."""
RECORDS = ("sweeps", "artifacts", "runs", "trunks")
CHECKPOINT = ".ckpt"
WEIGHTS = "model"
"""Folder of a finished run's weights, below the run's own and below its artifacts."""
COMPRESSION = 2
"""Checkpoints are noise to any compressor, and records are small: more would cost time and gain little."""
SLACK_BYTES = 2 * 2**20
"""What the compressor may still hold back when the room for checkpoints is measured."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an archive says of itself."""

    state_version: int
    home: str
    """The folder it came from: MLflow's database names it, and is corrected for another."""
    made_at: str
    corpora: tuple[str, ...]
    left_behind: tuple[str, ...]
    """Checkpoints for which there was no room: their runs start again."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive that was written."""

    files: tuple[Path, ...]
    bytes: int
    checkpoints: int
    left_behind: tuple[str, ...]


def pack(
    state: State,
    target: Path,
    *,
    corpora: bool = False,
    part_bytes: int | None = None,
    limit_bytes: int | None = None,
) -> Packed:
    """Write `target`, or `target.000` and so on, each of at most `part_bytes`.

    With `limit_bytes` for all of it, the smallest checkpoints go along and the others are named. UserError
    while a sweep is under way, and where the runs are in a database that this folder does not hold.
    """
    _refuse(state, target)
    with (
        tempfile.TemporaryDirectory(prefix=".pack-", dir=state.home) as scratch,
        Parts(target, part_bytes) as out,
        lzma.open(cast(IO[bytes], out), "wb", preset=COMPRESSION) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.add(_snapshot(state, Path(scratch)), "mlflow.db")
        records, checkpoints = _members(state)
        for path in records:
            tar.add(path, _name(state, path), recursive=False)
        names = _add_corpora(state, tar) if corpora else ()
        taken, left = _that_fit(checkpoints, out, limit_bytes)
        for path in taken:
            tar.add(path, _name(state, path))
        manifest = Manifest(
            state_version=STATE_VERSION,
            home=str(state.home),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            corpora=names,
            left_behind=tuple(_name(state, path) for path in left),
        )
        _add_text(tar, MANIFEST, json.dumps(asdict(manifest), indent=1), Path(scratch))
    return Packed(
        files=tuple(out.files), bytes=out.written, checkpoints=len(taken), left_behind=manifest.left_behind
    )


def _refuse(state: State, target: Path) -> None:
    if not state.is_tracked_here:
        raise UserError(
            "the runs are tracked in PostgreSQL: every machine reaches them there; nothing to pack"
        )
    if not state.tracking_db.exists():
        raise UserError(f"{state.home}: holds no runs yet; there is nothing to pack")
    if busy := sweeps_under_way(state):
        raise UserError(f"sweep {busy[0]} is under way: wait for it, or give it a --time-limit")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder")
    if state.home in target.resolve().parents:
        raise UserError(f"{target}: lies in the state folder; choose a place outside")


def _snapshot(state: State, scratch: Path) -> Path:
    """MLflow's database at one moment, whatever its write-ahead log still holds."""
    copy = scratch / "mlflow.db"
    with (
        contextlib.closing(sqlite3.connect(f"file:{state.tracking_db}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def _members(state: State) -> tuple[list[Path], list[Path]]:
    """Files of the records in a steady order, and checkpoints, the smallest first."""
    records: list[Path] = []
    checkpoints: list[Path] = []
    for folder in RECORDS:
        for path in sorted((state.home / folder).rglob("*")):
            below = path.relative_to(state.home).parts[2:]  # a sweep may bear any name
            if path.is_file() and not path.name.startswith(".") and WEIGHTS not in below:
                (checkpoints if path.suffix == CHECKPOINT else records).append(path)
    return records, sorted(checkpoints, key=lambda path: (path.stat().st_size, path))


def _that_fit(
    checkpoints: Sequence[Path], out: "Parts", limit_bytes: int | None
) -> tuple[list[Path], list[Path]]:
    if limit_bytes is None:
        return list(checkpoints), []
    room = limit_bytes - out.written - SLACK_BYTES
    taken = 0
    for path in checkpoints:
        room -= path.stat().st_size
        if room < 0:
            break
        taken += 1
    return list(checkpoints[:taken]), list(checkpoints[taken:])


def _add_corpora(state: State, tar: tarfile.TarFile) -> tuple[str, ...]:
    folders = sorted(meta.parent for meta in state.data.glob("*/meta.json"))
    for folder in folders:
        tar.add(folder, _name(state, folder))
    return tuple(folder.name for folder in folders)


def _add_text(tar: tarfile.TarFile, name: str, text: str, scratch: Path) -> None:
    path = scratch / name
    path.write_text(text, encoding="utf-8")
    tar.add(path, name)


def _name(state: State, path: Path) -> str:
    return path.relative_to(state.home).as_posix()
