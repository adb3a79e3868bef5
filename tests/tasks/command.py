"""The command `isoflop` as its user runs it, on a state folder of a test's own; and a sweep of seconds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from tasks import tracking
from tasks.state import State, open_state
from xlstm.training.job import CHECKPOINT

PROJECT = Path(__file__).parents[2]
SWEEP: dict[str, Any] = {
    "archs": ["transformer"],
    "context_lengths": [32],
    "budgets": [1e8],
    "ladder": {
        "shapes": [{"d_model": d, "num_blocks": 1} for d in (8, 12, 16)],
        "head_dim": 4,
        "ffn_multiple_of": 8,
    },
    "learning_rate": {"base": 0.01, "reference_width": 16},
    "batch": {"tokens": 64},
    "data": {"name": "one", "max_bytes": 200_000},
    "validation": {"tokens": 1024, "times": 2},
    "resources": {"device": "cpu", "runs_in_parallel": 2, "timeout_s": 120},
    "laws": {"resamples": 20},
}
"""Three runs."""
CHECKPOINTED = {"checkpoint_every_s": 0.1, "timeout_s": 600}
START_S = 1200.0
"""From the command to the first checkpoint: half a minute, and on a crowded machine many times that."""
OTHERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")


def tiny_sweep(name: str, *, resources: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """`SWEEP` by another name, with other keys."""
    return {"name": name, **SWEEP, **changes, "resources": {**SWEEP["resources"], **(resources or {})}}


class Isoflop:
    """`isoflop ...` in an environment of its own; services that it started are stopped by `isoflop down`."""

    def __init__(
        self, folder: Path, sweep: Mapping[str, Any], settings: Mapping[str, str] | None = None
    ) -> None:
        self.home = folder / "state"
        self.name = str(sweep["name"])
        self.spec = folder / "spec.yaml"
        self.spec.write_text(yaml.safe_dump(dict(sweep)))
        inherited = {key: value for key, value in os.environ.items() if key not in OTHERS}
        self.env = {**inherited, "ISOFLOP_HOME": str(self.home), "COLUMNS": "200", **(settings or {})}

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever that is."""
        return subprocess.run(
            self._program(command), env=self.env, cwd=PROJECT, capture_output=True, text=True, check=False
        )

    def sweep(self) -> subprocess.CompletedProcess[str]:
        """`isoflop sweep` on the spec."""
        return self("sweep", str(self.spec))

    @contextmanager
    def sweeping(self) -> Iterator[subprocess.Popen[str]]:
        """`isoflop sweep` while the body runs, and then to its end."""
        with subprocess.Popen(
            self._program(("sweep", str(self.spec))),
            env=self.env,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            yield process
            process.communicate(timeout=START_S)

    @property
    def state(self) -> State:
        return open_state(self.home)

    @property
    def report(self) -> Path:
        return self.home / "sweeps" / self.name / "report.html"

    def kill_flow(self) -> None:
        """kill -9 of the flow's process, once a training of it has left a point to resume from."""
        deadline = time.monotonic() + START_S
        while not any(is_resumable(run) for run in (self.home / "runs").glob("*")):
            assert time.monotonic() < deadline, "no training left a checkpoint"
            time.sleep(0.01)
        (flow,) = [process for process in psutil.process_iter() if self._is_flow(process)]
        flow.send_signal(signal.SIGKILL)

    def _is_flow(self, process: psutil.Process) -> bool:
        try:
            mine = process.environ().get("ISOFLOP_HOME") == str(self.home)
            return mine and "prefect.engine" in process.cmdline()
        except psutil.Error:
            return False

    @staticmethod
    def _program(command: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *command]


def is_resumable(run_dir: Path, steps: int = 30) -> bool:
    """Whether a training has left a point to resume from that holds some history: it is a point a percent."""
    try:
        return int(torch.load(run_dir / CHECKPOINT, weights_only=True)["global_step"]) >= steps
    except (FileNotFoundError, NotADirectoryError):
        return False


def files_with(secret: str, folder: Path) -> list[Path]:
    """Files below a folder that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def command_lines() -> str:
    """Of every process of this machine."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def resumed(tracking_uri: str) -> list[str]:
    """Names of the finished runs that went on from an attempt that died: their history is older than they."""
    client = tracking.client(tracking_uri)
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'"):
            points = client.get_metric_history(run.info.run_id, "train_loss")
            if any(point.timestamp < run.info.start_time for point in points):
                found.append(run.info.run_name)
    return found
