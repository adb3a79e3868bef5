"""What a machine has, and what a run takes of it."""

import dataclasses
import os
import threading
from pathlib import Path

import pytest

from sweeps.plan import PlannedRun, make_plan
from sweeps.resources import Resources
from sweeps.spec_files import parse_spec
from tasks.cluster import Elsewhere
from tasks.devices import (
    GPU_RUN_HOST_BYTES,
    LOOK_AHEAD,
    Gpu,
    Machine,
    cpu_count,
    device_kind,
    devices_of,
    gpu_names,
    machine,
    need,
    runs_at_once,
    strategy_of,
)
from tasks.errors import UserError
from tasks.slurm_engine import SlurmEngine
from xlstm.run_spec import DataSpec
from xlstm.training.job import TrainJob

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

SMI = """
echo "NVIDIA H100, GPU-aaa, 81559"
echo "NVIDIA H100, GPU-bbb, 81559"
"""


@pytest.fixture
def run() -> PlannedRun:
    data = DataSpec(name="text", tokenizer="bytes", content_hash="0" * 64)
    return make_plan(parse_spec(SPEC), data, 256).runs[0]


def answering(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi of its own, asked anew."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tasks.devices._gpus", __import__("tasks.devices").devices._gpus.__wrapped__)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "nvidia-smi has no answer in 0.2 s"),
        ('echo "GB10, GPU-a, [N/A]"', "no memory of GB10"),
    ],
)
def test_a_driver_that_does_not_answer(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.devices.DRIVER_S", 0.2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answering(script, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=words):
        gpu_names()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that knows two GPUs."""
    answering(SMI, tmp_path, monkeypatch)


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
        ({"gpus": 2}, SERVER, 1),
        ({"gpus": 8}, SERVER, 1),
        ({"device": "cpu", "gpus": 2}, SERVER, 32),
        ({"gpus": {1e8: 0.25, 1e9: 2}}, SERVER, 8 + LOOK_AHEAD),
        ({"gpus": {1e8: 0.25, 1e9: 2}, "runs_in_parallel": 3}, SERVER, 3),
    ],
)
def test_as_many_runs_at_once_as_fit(resources: dict, here: Machine, at_once: int) -> None:
    assert runs_at_once(Resources(**resources), here) == at_once


def test_no_steps_are_recorded_where_no_gpu_is() -> None:
    recorded = {"execution": {"cuda_graph": True}}
    with pytest.raises(UserError, match=r"^resources\.execution\.cuda_graph = true: .* none is visible here"):
        device_kind(Resources(**recorded), LAPTOP)
    assert device_kind(Resources(**recorded), SERVER) == "cuda"
    elsewhere = Resources(**recorded, cluster={"engine": "slurm"})
    assert device_kind(elsewhere, LAPTOP) == "cpu"  # of the machine that submits, which trains nothing


def test_a_run_takes_what_it_needs_and_at_most_the_machine(run: PlannedRun) -> None:
    on_cpu = need(run, Resources(threads=2), LAPTOP)
    assert (on_cpu.device, on_cpu.threads, on_cpu.memory_bytes) == ("cpu", 2, run.memory_bytes)
    small = Machine(threads=1, memory_bytes=2**20)
    assert need(run, Resources(threads=2), small).memory_bytes == 2**20
    on_gpu = need(run, Resources(gpus=0.25), SERVER)
    assert (on_gpu.device, on_gpu.gpu_share) == ("cuda", 0.25)
    assert run.N * 16 < on_gpu.gpu_bytes < 0.25 * 80 * 2**30
    assert on_gpu.memory_bytes == GPU_RUN_HOST_BYTES


def test_a_run_on_several_gpus_takes_them_together(run: PlannedRun) -> None:
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, batch_size=6))
    state = run.N * 16
    rest = run.memory_bytes - state
    both = need(run, Resources(gpus=2, threads=3), SERVER)
    assert (both.devices, both.threads, both.gpu_share, both.strategy) == (2, 6, 1.0, "ddp")
    assert both.gpu_bytes == state + rest // 2
    assert both.memory_bytes == 2 * GPU_RUN_HOST_BYTES
    assert both.expected_s == run.estimated_s / 2
    shards = need(run, Resources(gpus=2, strategy="fsdp"), SERVER)
    assert shards.gpu_bytes == state // 2 + rest // 2
    on_cpu = need(run, Resources(gpus=2, device="cpu"), LAPTOP)
    assert (on_cpu.devices, on_cpu.threads, on_cpu.gpu_share) == (2, 2, 0.0)


def test_no_more_gpus_than_there_are_or_the_batch_has_sequences(run: PlannedRun) -> None:
    assert run.spec.batch_size == 2
    assert need(run, Resources(gpus=8), SERVER).devices == 2
    large = dataclasses.replace(run, spec=dataclasses.replace(run.spec, batch_size=64))
    assert need(large, Resources(gpus=8), SERVER).devices == len(GPUS)
    assert devices_of(large, Resources(gpus=8)) == 8


def test_size_decides_on_gpus_and_on_replicas_or_shards(run: PlannedRun) -> None:
    by_size = Resources(gpus={1e7: 0.25, 1e8: 1, 4e9: 2})
    for N, gpus in ((1e5, 0.25), (1e7, 0.25), (1.1e7, 1), (4e9, 2), (1e12, 2)):
        assert by_size.gpus_of(N) == gpus
    assert strategy_of(dataclasses.replace(run, N=2_000_000_000), by_size, GPUS) == "ddp"
    assert strategy_of(dataclasses.replace(run, N=3_000_000_000), by_size, GPUS) == "fsdp"
    assert strategy_of(dataclasses.replace(run, N=3_000_000_000), Resources(strategy="ddp"), GPUS) == "ddp"


def test_gpus_are_a_share_of_one_or_a_whole_number() -> None:
    for gpus in (1.5, {1e8: 0.5, 1e9: 2.5}):
        with pytest.raises(ValueError, match=r"GPUs: give a share of one, as 0\.5, or a whole number"):
            Resources(gpus=gpus)


def test_a_gpu_that_is_not_there_is_named(run: PlannedRun) -> None:
    with pytest.raises(UserError, match=r"resources\.device = cuda: no NVIDIA GPU is visible here"):
        need(run, Resources(device="cuda"), LAPTOP)


def test_a_cluster_is_asked_for_all_devices_of_a_run_at_once(run: PlannedRun, tmp_path: Path) -> None:
    resources = Resources(gpus=2, threads=3, device="cuda", cluster={"engine": "slurm"})
    with Elsewhere("cuda:0", resources).take(run) as grant:
        assert (grant.device, grant.peers, grant.strategy) == ("cuda:0", ("cuda:1",), "ddp")
    job = TrainJob(
        spec=run.spec,
        data_folder=tmp_path,
        run_dir=tmp_path,
        tracking_uri="",
        experiment="",
        run_name="two",
        device=grant.device,
        peers=grant.peers,
        threads=3,
    )
    asked = SlurmEngine(resources, tmp_path, threading.Event())._parameters(job, 60.0)
    assert (asked["gpus_per_node"], asked["cpus_per_task"]) == (2, 6)
