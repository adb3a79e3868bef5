"""The keeper of the service for shared GPUs, with a control program that behaves as NVIDIA's does."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, cast

import psutil
import pytest

from sweeps.resources import Resources
from tasks.devices import Gpu, Machine
from tasks.engines import place
from tasks.mps import MAX_PATH, environment, shared_gpus
from tasks.state import State

CONTROL = """#!{python}
import os, pathlib, subprocess, sys, time
pipe = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
if "-f" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "server"])
    pathlib.Path(__file__).with_name("pids").write_text(str(os.getpid()))
    (pipe / "quit").unlink(missing_ok=True)
    (pipe / "control").touch()
    while not (pipe / "quit").exists():
        time.sleep(0.02)
else:
    assert sys.stdin.read().startswith("quit")
    (pipe / "quit").touch()
"""


@pytest.fixture
def control(tmp_path: Path) -> str:
    path = tmp_path / "control"
    path.write_text(CONTROL.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def daemon(control: str) -> psutil.Process:
    return psutil.Process(int(Path(control).with_name("pids").read_text()))


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


def test_runs_while_the_context_is_open_and_leaves_nothing(control: str, tmp_path: Path) -> None:
    with shared_gpus(tmp_path / "mps", control) as variables:
        assert variables == environment(tmp_path / "mps")
        service = daemon(control)
        family = [service, *service.children()]
        assert len(family) == 2
        assert all(process.is_running() for process in family)
    wait_until_gone(family)


def test_does_not_outlive_an_owner_that_is_killed(control: str, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from tasks.mps import shared_gpus\n"
        f"with shared_gpus(pathlib.Path({str(tmp_path / 'mps')!r}), {control!r}):\n"
        "    print('open', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"open\n"
    service = daemon(control)
    family = [service, *service.children(), *service.parents()[:1]]
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until_gone(family)


def test_a_keeper_that_is_killed_takes_the_daemon_with_it(control: str, tmp_path: Path) -> None:
    with shared_gpus(tmp_path / "mps", control):
        service = daemon(control)
        os.kill(service.ppid(), signal.SIGKILL)
        wait_until_gone([service])


def test_a_daemon_that_does_not_start_is_said_and_trainings_take_turns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), shared_gpus(tmp_path / "mps", "/bin/false") as variables:
        assert variables == {}
    assert "MPS did not start (its control daemon ended with code 1)" in caplog.text


def test_none_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING), shared_gpus(tmp_path / "mps") as variables:
        assert variables == {}
    assert "nvidia-cuda-mps-control is not installed" in caplog.text


def test_a_path_too_long_for_a_socket_is_replaced(control: str, tmp_path: Path) -> None:
    with shared_gpus(tmp_path / ("x" * MAX_PATH), control) as variables:
        pipe = Path(variables["CUDA_MPS_PIPE_DIRECTORY"])
        assert len(str(pipe)) < MAX_PATH
    assert not pipe.exists()


class _Started:
    """Stands for a launcher: what its trainings would find in their environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For sockets, whose paths are short; a test's own folder may be deep."""
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        yield Path(folder)


def test_runs_that_share_a_gpu_are_launched_beside_the_service_and_others_are_not(
    control: str, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-cuda-mps-control").symlink_to(control)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = Gpu(name="H", uuid="GPU-0", memory_bytes=80 * 2**30)
    here = Machine(threads=64, memory_bytes=2**40, gpus=(gpu,))
    monkeypatch.setattr("tasks.engines.machine", lambda: here)
    monkeypatch.setattr("tasks.engines.Launcher", _Started)
    state = State(home=short_folder)
    for alone in (
        Resources(),
        Resources(gpus=2),
        Resources(gpus=0.5, mps=False),
        Resources(gpus=0.5, device="cpu"),
    ):
        assert place(alone, state).launch is _Started
    for resources in (Resources(gpus=0.25), Resources(gpus={1e8: 0.5, 1e9: 2})):
        with place(resources, state).launch() as launcher:
            assert cast("_Started", launcher).environment == environment(state.home / "mps")
            service = daemon(control)
            assert service.is_running()
        wait_until_gone([service])
