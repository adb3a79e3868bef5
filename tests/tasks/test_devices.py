"""What a machine has, and what a run takes of it."""

import os
from pathlib import Path

import pytest

from sweeps.plan import PlannedRun, make_plan
from sweeps.spec import Resources
from sweeps.spec_files import parse_spec
from tasks.devices import GPU_RUN_HOST_BYTES, Gpu, Machine, cpu_count, gpu_names, machine, need, runs_at_once
from tasks.errors import UserError
from xlstm.run_spec import DataSpec

SPEC = {
    "name": "tiny",
    "archs": ["transformer"],
    "context_lengths": [32],
    "budgets": [2e8],
    "ladder": {"shapes": [{"d_model": 8, "num_blocks": 1, "num_heads": 1}]},
    "learning_rate": {"base": 0.01},
    "batch": {"tokens": 64},
}
LAPTOP = Machine(threads=8, memory_bytes=16 * 2**30)
GPUS = tuple(Gpu(name="H", uuid=f"GPU-{k}", memory_bytes=80 * 2**30) for k in range(2))
SERVER = Machine(threads=64, memory_bytes=2**40, gpus=GPUS)

SMI = """#!/bin/sh
echo "NVIDIA H100, GPU-aaa, 81559"
echo "NVIDIA H100, GPU-bbb, 81559"
"""


@pytest.fixture
def run() -> PlannedRun:
    data = DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64)
    return make_plan(parse_spec(SPEC), data, 256).runs[0]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that knows two GPUs."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tasks.devices._gpus", __import__("tasks.devices").devices._gpus.__wrapped__)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["GPU-aaa", "GPU-bbb"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-bbb"]),
        ("1,0", ["GPU-bbb", "GPU-aaa"]),
        ("GPU-b", ["GPU-bbb"]),
        ("5", []),
    ],
)
@pytest.mark.usefixtures("driver")
def test_visible_gpus_keep_their_identity(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[str]
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in machine().gpus] == found
    assert len(gpu_names()) == len(found)


def test_a_machine_has_what_its_control_group_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = machine()
    assert whole.threads == cpu_count()
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr("tasks.devices.CGROUP_LIMITS", (tmp_path / "memory.max",))
    assert machine().memory_bytes == int(0.9 * 2**30) < whole.memory_bytes


@pytest.mark.parametrize(
    ("resources", "here", "at_once"),
    [
        ({}, LAPTOP, 8),
        ({"threads": 3}, LAPTOP, 2),
        ({"threads": 10_000}, LAPTOP, 1),
        ({"runs_in_parallel": 3}, LAPTOP, 3),
        ({"runs_in_parallel": 30}, LAPTOP, 8),
        ({}, SERVER, 2),
        ({"gpus": 0.5}, SERVER, 4),
        ({"gpus": 0.3}, SERVER, 6),
        ({"gpus": 0.5, "threads": 32}, SERVER, 2),
        ({"gpus": 0.1, "runs_in_parallel": 5}, SERVER, 5),
        ({"device": "cpu"}, SERVER, 64),
    ],
)
def test_as_many_runs_at_once_as_fit(resources: dict, here: Machine, at_once: int) -> None:
    assert runs_at_once(Resources(**resources), here) == at_once


def test_a_run_takes_what_it_needs_and_at_most_the_machine(run: PlannedRun) -> None:
    on_cpu = need(run, Resources(threads=2), LAPTOP)
    assert (on_cpu.device, on_cpu.threads, on_cpu.memory_bytes) == ("cpu", 2, run.memory_bytes)
    small = Machine(threads=1, memory_bytes=2**20)
    assert need(run, Resources(threads=2), small).memory_bytes == 2**20
    on_gpu = need(run, Resources(gpus=0.25), SERVER)
    assert (on_gpu.device, on_gpu.gpu_share, on_gpu.gpu_bytes) == ("cuda", 0.25, run.memory_bytes)
    assert on_gpu.memory_bytes == GPU_RUN_HOST_BYTES


def test_a_gpu_that_is_not_there_is_named(run: PlannedRun) -> None:
    with pytest.raises(UserError, match=r"resources\.device = cuda: no NVIDIA GPU is visible here"):
        need(run, Resources(device="cuda"), LAPTOP)
