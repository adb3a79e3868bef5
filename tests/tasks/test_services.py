"""Daemons: ports, identities, start and stop. The one slow test starts the real three."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tasks import processes, services
from tasks.errors import UserError
from tasks.processes import LOOPBACK, OWNER_VARIABLE, Identity
from tasks.state import State, open_state
from tests.tasks.command import Isoflop, tiny_sweep


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens on some port of the loopback device."""
    with closing(socket.socket()) as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        yield server


LISTEN = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
input()
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that listens on a port and claims to serve another state folder."""
    env = {**os.environ, OWNER_VARIABLE: str(tmp_path / "state")}
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_ports_follow_from_the_folder_and_the_environment_may_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = open_state(tmp_path / "one"), open_state(tmp_path / "two")
    assert services.default_endpoints(one) == services.default_endpoints(one)
    assert services.default_endpoints(one) != services.default_endpoints(two)
    monkeypatch.setenv("ISOFLOP_MLFLOW_PORT", "5000")
    assert services.default_endpoints(one).mlflow_ui == "http://127.0.0.1:5000"
    for bad in ("80", "http", "99999", "-1"):
        monkeypatch.setenv("ISOFLOP_MLFLOW_PORT", bad)
        with pytest.raises(UserError) as error:
            services.default_endpoints(one)
        assert str(error.value) == f"ISOFLOP_MLFLOW_PORT = {bad!r}: must be a port between 1024 and 65535"


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_busy_port_is_named_with_its_holder_and_nothing_is_started(
    state: State, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    port = listener.getsockname()[1]
    variable = f"ISOFLOP_{name.upper()}_PORT"
    monkeypatch.setenv(variable, str(port))
    with pytest.raises(UserError) as error:
        services.up(state)
    message = str(error.value)
    assert message.startswith(f"port {port} of {name} is busy: process {os.getpid()} (")
    assert message.endswith(f"listens there: stop it, or choose another port with {variable}")
    assert not state.services_file.exists()
    assert not state.tracking_db.exists()


def test_a_process_of_a_reused_number_is_another(stranger: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = stranger
    started = psutil.Process(process.pid).create_time()
    assert Identity(pid=process.pid, started=started).alive
    assert not Identity(pid=process.pid, started=started - 60).alive
    processes.stop(Identity(pid=process.pid, started=started - 60))
    assert process.poll() is None
    processes.stop(Identity(pid=process.pid, started=started), grace_s=5)
    assert process.poll() is not None
    assert not Identity(pid=process.pid, started=started).alive


def test_a_port_knows_its_holder_and_whose_service_it_is(
    stranger: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    process, port = stranger
    assert not processes.port_is_free(port)
    holder = processes.port_holder(port)
    assert holder is not None
    assert holder.pid == process.pid
    assert processes.owner(holder) == str(tmp_path / "state")
    assert [found.pid for found in processes.owned_sessions(str(tmp_path / "state"))] == [process.pid]


def test_what_a_deleted_folder_left_running_is_stopped_with_the_rest(
    stranger: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    process, port = stranger
    assert services.down(open_state(tmp_path / "state")) == []
    assert process.poll() is not None
    assert processes.port_is_free(port)


def test_what_a_killed_leader_left_running_is_found_and_stopped(tmp_path: Path) -> None:
    """MLflow's command starts a server of its own, which survives a kill -9 of it and keeps the port."""
    lead = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LISTEN!r}])"
    state = open_state(tmp_path / "state")
    env = {**os.environ, OWNER_VARIABLE: str(state.home)}
    with subprocess.Popen(
        [sys.executable, "-c", lead],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        port = int(leader.stdout.readline())
        leader.kill()
        leader.wait()
        assert not processes.port_is_free(port)
        assert len(processes.owned_sessions(str(state.home))) == 1
        assert services.down(state) == []
        assert processes.port_is_free(port)


def test_a_record_of_a_dead_process_counts_for_nothing(state: State) -> None:
    state.services_file.write_text('{"prefect": {"identity": {"pid": 999999, "started": 1.0}, "port": 4200}}')
    assert services.running_endpoints(state) is None
    assert services.down(state) == []
    assert not state.services_file.exists()


def test_damaged_records_are_named(state: State) -> None:
    state.services_file.write_text("{")
    with pytest.raises(UserError, match=r"services\.json: cannot be read: .* delete it"):
        services.down(state)


def _families(state: State) -> list[int]:
    return [found.pid for found in processes.owned_sessions(str(state.home))]


def listening(state: State) -> set[int]:
    """Ports of the services; they and their children listen on loopback, and are connected to nobody else."""
    ports = set()
    for pid in _families(state):
        for process in (leader := psutil.Process(pid), *leader.children(recursive=True)):
            for connection in process.net_connections(kind="inet"):
                assert connection.laddr.ip in ("127.0.0.1", "::1"), (process.cmdline(), connection)
                if connection.raddr:
                    assert connection.raddr.ip in ("127.0.0.1", "::1"), (process.cmdline(), connection)
                if connection.status == psutil.CONN_LISTEN:
                    ports.add(connection.laddr.port)
    return ports


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_from_nothing_by_the_command_line(tmp_path: Path) -> None:
    """Services, deployment, worker, flow, report: what `make sweep` does; then the way down."""
    isoflop = Isoflop(tmp_path, tiny_sweep("one"))
    home, spec = isoflop.home, str(isoflop.spec)
    try:
        first = isoflop.sweep()
        assert first.returncode == 0, first.stdout + first.stderr
        assert first.stdout.startswith("starting prefect, mlflow, worker\n")
        assert "3 of 3 runs finished" in first.stdout
        assert f"report   {home}/sweeps/one/report.html" in first.stdout
        assert isoflop.report.exists()
        state = open_state(home)
        records = services.recorded(state)
        assert listening(state) >= {record.port for record in records.values() if record.port}
        again = isoflop.sweep()
        assert again.returncode == 0, again.stdout + again.stderr
        assert "3 of 3 runs done, 3 of them cached" in again.stdout
        assert services.recorded(state) == records
        endpoints = services.running_endpoints(state)
        assert endpoints is not None
        services.wait_for_mlflow(state, endpoints)
        refused = isoflop("sweep", spec, "--set", "budgets=[1e4]")
        assert refused.returncode == 2
        assert refused.stderr.startswith("isoflop: budgets: 1e+04 FLOPs buy ")
    finally:
        ended = isoflop("down")
    assert ended.stdout == "stopped worker, mlflow, prefect\n"
    assert _families(state) == []
    assert not any(record.identity.alive for record in records.values())
