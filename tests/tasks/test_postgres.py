"""The whole stack on a real PostgreSQL, for Prefect and for MLflow."""

import getpass
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import UserError
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db
from tests.tasks.command import CHECKPOINTED, Isoflop, command_lines, files_with, resumed, tiny_sweep

pytest.importorskip("psycopg", reason="needs the extra postgres: pip install 'isoflop[postgres]'")
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if shutil.which("initdb") is None else [Path()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL's server is not installed (Debian: postgresql)"),
]
SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of this test's own on loopback; its address without a scheme. It refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="isoflop-postgres-"))  # pytest's are for this user alone
    binaries = BINARIES[-1]
    as_root = getpass.getuser() == "root"
    prefix = ["runuser", "-u", "postgres", "--"] if as_root else []
    if as_root:
        shutil.chown(folder, "postgres")
    (folder / "password").write_text(SECRET)
    if as_root:
        shutil.chown(folder / "password", "postgres")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*prefix, str(binaries / program), *arguments], check=True, capture_output=True)

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "isoflop", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        address = f"isoflop:{SECRET}@127.0.0.1:{port}"
        import psycopg

        with closing(psycopg.connect(f"postgresql://{address}/postgres", autocommit=True)) as connection:
            for name in ("mlflow", "prefect"):
                connection.execute(f"CREATE DATABASE {name}")
        yield address
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_a_sweep_with_both_databases_on_postgres(server: str, tmp_path: Path) -> None:
    """Killed with -9 in the middle, started again, and once more when all is done."""
    tracker = f"postgresql://{server}/mlflow"
    settings = {
        "ISOFLOP_TRACKING_URI": tracker,
        "ISOFLOP_PREFECT_DATABASE": f"postgresql+asyncpg://{server}/prefect",
    }
    isoflop = Isoflop(tmp_path, tiny_sweep("shared", budgets=[1e8, 2e9], resources=CHECKPOINTED), settings)
    try:
        with isoflop.sweeping():
            isoflop.kill_flow()
        before = finished(tracker)
        second = isoflop.sweep()
        assert second.returncode == 0, second.stdout + second.stderr
        assert "6 of 6 runs finished" in second.stdout
        after = finished(tracker)
        third = isoflop.sweep()
        assert third.returncode == 0, third.stdout + third.stderr
        assert "6 of 6 runs done, 6 of them cached" in third.stdout
        assert SECRET not in command_lines()
    finally:
        isoflop("down", "--force")
    assert before.items() <= after.items()
    assert len(after) == 6
    assert finished(tracker) == after
    assert resumed(tracker), "no run went on from its checkpoint"
    assert stale(f"postgresql://{server}") == {}
    runs = pl.read_parquet(isoflop.home / "sweeps" / "shared" / "runs.parquet")
    assert runs["status"].to_list() == ["finished"] * 6
    assert not (isoflop.home / "mlflow.db").exists()
    assert not list((isoflop.home / "prefect").glob("*.db"))
    assert files_with(SECRET, isoflop.home) == []
    assert SECRET not in second.stdout + second.stderr + third.stdout + third.stderr


def finished(tracker: str) -> dict[str, str]:
    """MLflow runs that say FINISHED, by run key; a key that has two is an error."""
    found: dict[str, str] = {}
    for key, run_id in _ask(
        tracker,
        "SELECT tags.value, runs.run_uuid FROM runs JOIN tags USING (run_uuid)"
        " WHERE tags.key = 'isoflop.run_key' AND runs.status = 'FINISHED'",
    ):
        assert key not in found
        found[key] = run_id
    return found


def stale(address: str) -> dict[str, int]:
    """Rows that say that something is under way, by table."""
    asked = {
        "runs": ("mlflow", "SELECT count(*) FROM runs WHERE status = 'RUNNING'"),
        "flow_run": ("prefect", _UNDER_WAY.format("flow_run")),
        "task_run": ("prefect", _UNDER_WAY.format("task_run")),
    }
    counted = {table: _ask(f"{address}/{base}", query)[0][0] for table, (base, query) in asked.items()}
    return {table: count for table, count in counted.items() if count}


_UNDER_WAY = "SELECT count(*) FROM {} WHERE state_type IN ('PENDING', 'RUNNING', 'CANCELLING')"


def _ask(address: str, query: str) -> list[Any]:
    import psycopg

    with closing(psycopg.connect(address)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://isoflop:wrong-secret@{host}/mlflow", "the database cannot be used: "),
        ("postgresql://isoflop:wrong-secret@127.0.0.1:9/mlflow", "the database cannot be used: "),
        ("mysql://isoflop:wrong-secret@{host}/mlflow", "must begin with postgresql://"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    state: State = open_state(tmp_path / "state")
    monkeypatch.setenv("ISOFLOP_TRACKING_URI", uri.format(host=server.partition("@")[2]))
    with pytest.raises(UserError) as error:
        ensure_tracking_db(state)
    assert str(error.value).startswith("ISOFLOP_TRACKING_URI")
    assert message in str(error.value)
    assert "wrong-secret" not in str(error.value)
    assert "\n" not in str(error.value)
