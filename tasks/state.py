"""The state folder: where runs, databases, tokens and reports of a project lie."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from xlstm.training.files import write_atomically

STATE_VERSION = 1
"""Raise it when the folder's layout changes, and write the migration; an older folder is never recreated."""

TRACKING_VARIABLE = "ISOFLOP_TRACKING_URI"
ARTIFACTS_VARIABLE = "ISOFLOP_ARTIFACTS"
FOLDERS = ("artifacts", "prefect", "data", "runs", "sweeps", "logs", "locks")


@dataclass(frozen=True, kw_only=True)
class State:
    """A state folder that was found fit for use."""

    home: Path

    @property
    def tracking_db(self) -> Path:
        return self.home / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """$ISOFLOP_TRACKING_URI, a PostgreSQL that several machines share, or the folder's own SQLite."""
        return os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{self.tracking_db}"

    @property
    def is_tracked_here(self) -> bool:
        """Whether the tracker is the folder's own SQLite."""
        return not os.environ.get(TRACKING_VARIABLE)

    @property
    def is_tracked(self) -> bool:
        """Whether there may be runs to ask for."""
        return not self.is_tracked_here or self.tracking_db.exists()

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def artifact_root(self) -> str:
        """$ISOFLOP_ARTIFACTS, as s3://bucket/folder, or the folder's own."""
        return (os.environ.get(ARTIFACTS_VARIABLE) or self.artifacts.as_uri()).rstrip("/")

    @property
    def prefect_home(self) -> Path:
        return self.home / "prefect"

    @property
    def cache(self) -> Path:
        """Compiled kernels, and what was measured of the machine; may be deleted at any time."""
        return self.home / "cache"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def services_file(self) -> Path:
        return self.home / "services.json"

    def run_dir(self, run_key: str) -> Path:
        """Folder of one training: spec, progress, result, log, checkpoints."""
        return self.home / "runs" / _plain(run_key)

    def trunk_dir(self, trunk_key: str) -> Path:
        """Folder of the path that runs of the schedule wsd share: its checkpoints."""
        return self.home / "trunks" / _plain(trunk_key)

    def sweep_dir(self, name: str) -> Path:
        """Folder of one sweep: plan, run table, analysis, report."""
        return self.home / "sweeps" / _plain(name)

    def lock(self, name: str) -> Path:
        """Path of a lock file; the kernel frees its lock on any death of the holder."""
        return self.home / "locks" / f"{_plain(name)}.lock"


def _plain(name: str) -> str:
    """A name that stays one level below the folder that it is put in. UserError for any other."""
    if not name.strip(".") or "/" in name or "\0" in name or len(name) > 200:
        raise UserError(f"{name!r}: cannot name a folder of the state: use letters, digits, '-', '_' and '.'")
    return name


def locate() -> Path:
    """$ISOFLOP_HOME, or `.isoflop` in the project's root."""
    chosen = os.environ.get("ISOFLOP_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return project_root() / ".isoflop"


def project_root() -> Path:
    """Nearest folder from here upwards that holds prefect.yaml, or the current one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "prefect.yaml").is_file()), here)


def deployment_manifest() -> Path:
    """The project's prefect.yaml. UserError outside of the project."""
    manifest = project_root() / "prefect.yaml"
    if not manifest.is_file():
        raise UserError(
            f"{manifest.parent}: no prefect.yaml here or above: run isoflop in its project's folder"
        )
    return manifest


def open_state(home: Path | None = None) -> State:
    """The state folder, made if it is not there yet.

    Raises UserError where it cannot be written, belongs to a newer version, or is some other folder.
    """
    home = locate() if home is None else home.absolute()
    if home.exists():
        _refuse_foreign(home)
    else:
        _make(home)
    _refuse_readonly(home)
    for folder in FOLDERS:
        (home / folder).mkdir(exist_ok=True)
    if not (home / "state.json").exists():
        write_atomically(home / "state.json", json.dumps({"version": STATE_VERSION}) + "\n")
    return State(home=home)


def _make(home: Path) -> None:
    try:
        home.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{home}: the state folder cannot be made ({reason}): set ISOFLOP_HOME to a writable folder"
        ) from error


def _refuse_foreign(home: Path) -> None:
    """Raise unless the folder is empty or is a state folder of a version that this code knows."""
    if not home.is_dir():
        raise UserError(f"{home}: is a file and not a folder: set ISOFLOP_HOME to a folder")
    marker = home / "state.json"
    if not marker.exists():
        if any(not entry.name.startswith(".state.json") for entry in home.iterdir()):
            raise UserError(
                f"{home}: holds files and no state.json, so it is no state folder:"
                " set ISOFLOP_HOME to an empty folder"
            )
        return
    version = _version(marker)
    if version > STATE_VERSION:
        raise UserError(
            f"{home}: written by a newer Isoflop (state version {version}, this one knows {STATE_VERSION}):"
            " upgrade Isoflop, or set ISOFLOP_HOME to another folder"
        )


def _version(marker: Path) -> int:
    try:
        version = json.loads(marker.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{marker}: is not {{"version": {STATE_VERSION}}}: restore it, or set another ISOFLOP_HOME'
        ) from error
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{marker}: version = {version!r} is not a version: restore it")
    return version


def _refuse_readonly(home: Path) -> None:
    """Raise where the folder cannot be written, or says so by its mode: root could, and should not."""
    for folder in (home, *(home / name for name in FOLDERS)):
        if not folder.exists():
            continue
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & 0o222 or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{folder}: is read-only: make it writable (chmod u+w), or set ISOFLOP_HOME to another folder"
            )
