"""The capability benchmark: bare of the flow's packages, and going on where it was cut."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ABSENT = ("prefect", "mlflow", "polars", "pydantic", "lightning", "altair", "pandas")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, with the packages of the flow hidden from it and from its processes."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    code = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    (hidden / "sitecustomize.py").write_text(code)
    command = [sys.executable, "-m", "benchmarks.capability", "--json", str(folder / "found.json"), *options]
    paths = {"PYTHONPATH": str(hidden), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {
        "name": "tiny",
        "archs": ["lstm", "transformer"],
        "seeds": [0, 1],
        "experiments": {
            "parity": {
                "task": {"kind": "parity", "trained": 4, "measured": [4, 8], "examples": 16},
                "size": {"parameters": 3000, "tolerance": 0.5},
                "recipe": {"steps": 2, "batch_size": 2, "peak_lr": 0.01},
            }
        },
    }
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.slow
def test_it_needs_nothing_of_the_flow_and_goes_on_where_it_was_cut(profile: Path, tmp_path: Path) -> None:
    options = ["--profile", str(profile), "--device", "cpu", "--workers", "1"]
    first = run(tmp_path, *options, "--set", "seeds=[0]")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 runs, 2 to train" in first.stdout
    second = run(tmp_path, *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 runs, 2 to train" in second.stdout
    kept = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert len(kept) == 4
    assert all({"accuracy/4", "accuracy/8", "loss"} <= set(row["measures"]) for row in kept.values())
    shown = run(tmp_path, *options, "--show")
    assert shown.returncode == 0
    assert "| chance |  |  |  | 0.50 | 0.50 |" in shown.stdout
    assert "| claim | verdict | measured |" in shown.stdout


def test_a_plan_that_is_not_finished_is_no_success(profile: Path, tmp_path: Path) -> None:
    options = ["--profile", str(profile), "--device", "cpu"]
    assert run(tmp_path, *options, "--time-limit", "0").returncode == 1
    wrong = run(tmp_path, *options, "--only", "poems")
    assert wrong.returncode == 2
    assert "--only poems: no such experiment; use some of parity" in wrong.stderr
