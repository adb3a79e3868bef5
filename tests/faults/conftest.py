"""One state folder, one spec and one saboteur for all faults."""

import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tasks.launcher import Launcher
from tasks.state import open_state
from tests.faults.sweep import SABOTEUR, Sweep

SPEC = {
    "name": "faults",
    "archs": ["mlstm", "transformer"],
    "context_lengths": [32],
    "budgets": [2e8],
    "ladder": {
        "shapes": [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 12)],
        "ffn_multiple_of": 8,
    },
    "learning_rate": {"base": 0.01, "reference_width": 16},
    "batch": {"tokens": 128},
    "validation": {"tokens": 1024, "times": 2},
    "resources": {
        "device": "cpu",
        "runs_in_parallel": 2,
        "timeout_s": 120,
        "hang_after_s": 20,
        "checkpoint_every_s": 0.1,
    },
}


@pytest.fixture(scope="session")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of a second each."""
    folder = tmp_path_factory.mktemp("faults")
    library = Path(sysconfig.get_path("stdlib"))
    (folder / "text").mkdir()
    for name in ("argparse", "ast", "csv", "datetime", "difflib", "inspect"):
        shutil.copy(library / f"{name}.py", folder / "text" / f"{name}.txt")
    data = {"source": "files", "name": "tiny", "paths": [str(folder / "text")], "validation_fraction": 0.2}
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "data": data}))
    return path


@pytest.fixture(scope="session")
def sweep(spec_file: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Planned, not trained."""
    state = open_state(tmp_path_factory.mktemp("home") / "state")
    shutil.copyfile(mlflow_template, state.tracking_db)
    return Sweep.of(state, spec_file)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Trainings that meet the faults that were written down for them."""
    with Launcher(SABOTEUR) as launcher:
        yield launcher


@contextmanager
def alone(launcher: Launcher) -> Iterator[Launcher]:
    """The launcher, which outlives the sweep that uses it."""
    yield launcher


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many faults of each kind passed, and how many of them met a process that still ran."""

    passed: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, hit: bool) -> None:
        self.passed[kind] += 1
        self.met[kind] += hit


@pytest.fixture(scope="session")
def counts(request: pytest.FixtureRequest) -> Iterator[Counts]:
    """Written to $ISOFLOP_FAULTS_REPORT as a Markdown table at the end, where that is set."""
    counts = Counts()
    yield counts
    path = os.environ.get("ISOFLOP_FAULTS_REPORT")
    if path:
        rows = [f"| {kind} | {n} | {counts.met[kind]} |" for kind, n in sorted(counts.passed.items())]
        total = f"| **all** | {counts.passed.total()} | {counts.met.total()} |"
        header = ["| fault | passed | met a live process |", "|---|---|---|"]
        Path(path).write_text("\n".join([*header, *rows, total]) + "\n")
