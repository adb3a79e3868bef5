"""The whole stack on a real PostgreSQL, for Prefect and for MLflow."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from tasks.errors import UserError
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db

pytest.importorskip("psycopg", reason="needs the extra postgres: pip install 'isoflop[postgres]'")
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if shutil.which("initdb") is None else [Path()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL's server is not installed (Debian: postgresql)"),
]
PROJECT = Path(__file__).parents[2]
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


SPEC = """
name: shared
archs: [transformer]
context_lengths: [32]
budgets: [1e8]
ladder:
  shapes: [{d_model: 8, num_blocks: 1}, {d_model: 12, num_blocks: 1}, {d_model: 16, num_blocks: 1}]
  head_dim: 4
  ffn_multiple_of: 8
learning_rate: {base: 0.01, reference_width: 16}
batch: {tokens: 64}
data: {name: one, max_bytes: 200_000}
validation: {tokens: 1024, times: 2}
resources: {device: cpu, runs_in_parallel: 2, timeout_s: 120}
laws: {resamples: 20}
"""


def test_a_sweep_with_both_databases_on_postgres(server: str, tmp_path: Path) -> None:
    home, spec = tmp_path / "state", tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    env = {
        **os.environ,
        "ISOFLOP_HOME": str(home),
        "ISOFLOP_TRACKING_URI": f"postgresql://{server}/mlflow",
        "ISOFLOP_PREFECT_DATABASE": f"postgresql+asyncpg://{server}/prefect",
        "COLUMNS": "200",
    }
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        env.pop(name, None)

    def isoflop(*command: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "flows.cli", *command]
        return subprocess.run(program, env=env, cwd=PROJECT, capture_output=True, text=True, check=False)

    try:
        first = isoflop("sweep", str(spec))
        assert first.returncode == 0, first.stdout + first.stderr
        assert "3 of 3 runs finished" in first.stdout
        again = isoflop("sweep", str(spec))
        assert "3 of 3 runs done, 3 of them cached" in again.stdout, again.stdout + again.stderr
        commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert SECRET not in commands
    finally:
        isoflop("down", "--force")
    runs = pl.read_parquet(home / "sweeps" / "shared" / "runs.parquet")
    assert runs["status"].to_list() == ["finished"] * 3
    assert not (home / "mlflow.db").exists()
    assert not list((home / "prefect").glob("*.db"))
    told = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert told == []
    assert SECRET not in first.stdout + first.stderr + again.stdout


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
