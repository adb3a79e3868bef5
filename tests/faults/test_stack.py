"""kill -9 of each part of the whole stack in turn, then the same command again. Long form only."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from tasks import processes, services, tracking
from tasks.devices import machine
from tasks.leases import Ledger, ledger_folder
from tasks.state import open_state
from tests.faults.conftest import Counts
from tests.faults.sweep import Sweep

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("ISOFLOP_FAULTS" not in os.environ, reason="minutes long: make test-faults runs it"),
]

PROJECT = Path(__file__).parents[2]
PARTS = ("worker", "prefect", "mlflow", "runner", "zygote", "training", "command")
AGAIN_S = 300.0
"""More than the second start may take on a busy machine; a leaked lease or slot of minutes shows."""


class Stack:
    """The command `isoflop` on a state folder of its own."""

    def __init__(self, home: Path, spec_file: Path) -> None:
        self.state = open_state(home)
        self.spec_file = spec_file
        self.env = {**os.environ, "ISOFLOP_HOME": str(home), "COLUMNS": "200"}
        for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
            self.env.pop(name, None)

    def start(self, *command: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "flows.cli", *(command or ("sweep", str(self.spec_file)))]
        return subprocess.Popen(
            program, env=self.env, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *command: str) -> tuple[int, str]:
        with self.start(*command) as process:
            said, _ = process.communicate(timeout=1200)
        return process.returncode, said

    def pid_of(self, part: str) -> int | None:
        """Process of a part; None while there is none."""
        if part in ("worker", "prefect", "mlflow"):
            return services.recorded(self.state)[part].identity.pid
        marks = {"runner": "prefect.engine", "zygote": "tasks.zygote", "training": "tasks.zygote"}
        found = [p for p in psutil.process_iter() if _belongs(p, str(self.state.home), marks[part])]
        if part == "training":
            found = [p for p in found if p.ppid() in {other.pid for other in found}]
        elif part == "zygote":
            found = [p for p in found if p.ppid() not in {other.pid for other in found}]
        return found[0].pid if found else None


def _belongs(process: psutil.Process, home: str, mark: str) -> bool:
    try:
        return mark in process.cmdline() and process.environ().get("ISOFLOP_HOME") == home
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def stack(
    spec_file: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack") / "state", spec_file)
    shutil.copyfile(mlflow_template, stack.state.tracking_db)
    yield stack
    code, said = stack.run("down", "--force")
    assert code == 0, said
    assert processes.owned_sessions(str(stack.state.home)) == []


@pytest.fixture(scope="module")
def whole(stack: Stack) -> Sweep:
    """Trained once without disturbance, by the command."""
    code, said = stack.run()
    assert code == 0, said
    return Sweep.of(stack.state, stack.spec_file)


@pytest.fixture(scope="module")
def reference(whole: Sweep) -> pl.DataFrame:
    """The undisturbed table, taken before anything is broken."""
    return whole.table()


def until(condition: Callable[[], bool], seconds: float = 600.0) -> bool:
    """Whether it came true; asked no more then, as what trains may have ended by the next look."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("part", PARTS)
def test_the_same_command_again_finishes_the_sweep(
    stack: Stack, whole: Sweep, reference: pl.DataFrame, counts: Counts, part: str
) -> None:
    rng = Random(part)
    whole.forget()
    with stack.start() as command:
        assert until(lambda: stack.pid_of("training") is not None)
        assert until(lambda: any(whole.finished().values()))
        time.sleep(rng.uniform(0, 2))
        pid = command.pid if part == "command" else stack.pid_of(part)
        hit = pid is not None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        said, _ = command.communicate(timeout=1200)
        code = command.returncode
    if part in ("mlflow", "zygote", "training"):
        assert code == 0, said  # the flow goes on by itself
    survived = {key: ids for key, ids in whole.finished().items() if ids}

    started = time.monotonic()
    code, said = stack.run()
    assert code == 0, said
    assert time.monotonic() - started < AGAIN_S
    assert_frame_equal(whole.table(), reference, check_exact=True)
    finished = whole.finished()
    assert {key: len(ids) for key, ids in finished.items()} == dict.fromkeys(finished, 1)
    assert {key: finished[key] for key in survived} == survived
    assert {run.info.status for run in whole.tracked()} <= {"FINISHED", "FAILED", "KILLED"}
    assert stale(stack) == {}
    assert whole.database_faults() == []
    assert Ledger(ledger_folder(), machine()).held() == []
    assert tracking.orphans(stack.state) == []
    counts.add(f"stack: {part}", hit)


def stale(stack: Stack) -> dict[str, int]:
    """Flow runs and task runs that Prefect's database believes to be under way."""
    (path,) = stack.state.prefect_home.glob("*.db")
    found = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
        for table in ("flow_run", "task_run"):
            query = f"SELECT count(*) FROM {table} WHERE state_type IN ('PENDING', 'RUNNING', 'CANCELLING')"
            if count := database.execute(query).fetchone()[0]:
                found[table] = count
    return found
